// Boxes as matrices: for each box one banded matrix per axis (docs/derivation.md). Where there are no such matrices,
// boxes as stencils.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core.h"

namespace roialign {

// A sparse matrix in compressed rows: row r holds index[begin[r] .. begin[r+1]) and the same range of weight.
template <class A>
struct Matrix {
  const int32_t* begin = nullptr;
  const int32_t* index = nullptr;
  const A* weight = nullptr;
};

// Consecutive cells of the map: cell, cell+1, ... hold positions at, at+1, ...
struct Run {
  int32_t cell, at, count;
};

// One axis of one box. Only the cells that some sample touches exist here: they are numbered by position,
// in increasing order, and `cell` and `run` say where on the map they lie.
template <class A>
struct Axis {
  Matrix<A> bins;   // bins x positions; for the max of samples: samples x positions; of whole cells each weight is 1
  Matrix<A> cells;  // the transpose, positions x bins; only when the gradient to the input is wanted
  const A* dlo = nullptr;          // derivatives of bins.weight (of the sample's position, for the max of samples) with
  const A* dhi = nullptr;          // respect to the two box edges; only when the gradient to the boxes is wanted
  const int32_t* group = nullptr;  // max of samples: the samples of each bin are group[p] .. group[p+1]
  const int32_t* cell = nullptr;   // position -> cell
  const Run* run = nullptr;
  int32_t touched = 0, runs = 0;
  int32_t uniform = 0;  // taps in every row of bins when that is the same small number, else 0
};

// Derivatives of a tap's weight with respect to the numbers of its box in their order, and then to its bin's own two.
constexpr int rates_of(Form form) { return form == Form::moved ? 6 : 5; }
constexpr int own_rates(Form form) { return form == Form::moved ? 2 : 0; }

struct Cell {
  int32_t y, x;
};

// What stands for the two matrices where each bin has cells of its own: its taps, no two at the same cell. The axes of
// such a box say in which rows and columns of the map its cells lie, and have no weights.
template <class A>
struct Stencil {
  const int32_t* begin = nullptr;  // bin b, counted row by row, has the taps begin[b] .. begin[b + 1]
  const Cell* cell = nullptr;      // of each tap
  const A* weight = nullptr;
  const A* rates = nullptr;    // rates_of(form) of each tap; only when the gradient to the boxes is wanted
  const Run* spans = nullptr;  // for each row the cells from the first to the last one touched; `at` is within the row
  int64_t cells = 0;           // in all spans
};

template <class A>
struct Box {
  Axis<A> y, x;                         // y: of the map's one row where it has one axis alone
  const Axis<A>* z = nullptr;           // of a volume; its matrix always has a transpose: slices are taken one by one
  const Stencil<A>* stencil = nullptr;  // of the kinds that gather, if the box is finite
  int64_t row = 0;                      // in rois and in the pooled tensor
  bool finite = false;                  // otherwise the answer is NaN and the axes are empty
};

// One bin of one box along y, where bins have channels of their own and this one touches few rows of the map.
inline constexpr int kBinRows = 4, kBinColumns = 8;
template <class A>
struct BinRows {
  int32_t box;
  A weight[kBinRows];
  int64_t at[kBinRows];  // their first cells, in a plane without gaps
};

// All bins of some boxes. Row p of bins of each: rows[p * boxes, (p + 1) * boxes), ordered by how many rows of the map
// it touches, those of i rows ending before ends[p * (kBinRows + 1) + i]; 0: none, or more than few. Column q of bins
// of box k: from column[q * boxes + k] on kBinColumns columns of the map with as many weights, of which some may be 0;
// -1: none, or more than these.
template <class A>
struct Bins {
  const BinRows<A>* rows;
  const int32_t *ends, *column;
  const A* weight;
  int64_t boxes;
};

// What the tables must hold besides the bins.
struct Wanted {
  bool transpose = false, derivative = false;
};

// Memory of many small arrays that die together.
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena();

  template <class V>
  V* take(size_t count) {
    return static_cast<V*>(bytes(count * sizeof(V)));
  }

 private:
  void* bytes(size_t size);

  struct Chunk;
  Chunk* newest_ = nullptr;
  char* free_ = nullptr;
  size_t left_ = 0;
};

// Fills boxes[i] from row boxes[i].row of the rois, for i in [0, count). Positions are computed in the type of the
// rois, weights are kept in the type the kernels accumulate in (double for float64 maps, else float).
template <class A>
void build_tables(const Call& call, Wanted wanted, Box<A>* boxes, int64_t count, Arena& arena);

}  // namespace roialign
