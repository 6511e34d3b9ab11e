// Where each bin has cells of its own: out = sum over the taps of the bin of weight * cell. Channels are the lanes here
// too, so that a bin's taps serve all channels of a block at once.
#include "kernels/contract-inl.h"

namespace roialign::ROI_SET {

// The cells of one channel block, by their place on the map.
template <class A>
struct Cells {
  const A* origin;
  int64_t row, pixel;  // strides

  Cells(const View<A>& view, const Box<A>& box) : origin(view.base), row(view.row), pixel(view.pixel) {
    if (view.compact && box.y.touched) origin -= box.y.cell[0] * row + box.x.cell[0] * pixel;
  }
  ROI_INLINE Lanes<A> operator()(const Cell& cell) const {
    return Lanes<A>::load(origin + cell.y * row + cell.x * pixel);
  }
};

template <class S>
static void gather_forward_piece(const KernelArgs& args, const Piece& piece) {
  using A = typename AccumulatorOf<S>::Type;
  const auto* boxes = static_cast<const Box<A>*>(piece.boxes);
  auto* tile = reinterpret_cast<A*>(args.space.tile);
  for_each_block<S, A>(args, piece, [&](const View<A>& view, int64_t i, int64_t channel, int lanes) {
    const Box<A>& box = boxes[i];
    const Cells<A> cells(view, box);
    for_each_tile(args, [&](int32_t first, int32_t rows) {
      A* to = tile;
      for (int64_t b = int64_t{first} * args.pooled.width; b < int64_t{first + rows} * args.pooled.width; ++b) {
        Lanes<A> sum = Lanes<A>::fill(box.finite ? A(0) : A(__builtin_nan("")));
        if (box.finite) {
          const Stencil<A>& stencil = *box.stencil;
          for (int32_t t = stencil.begin[b]; t < stencil.begin[b + 1]; ++t)
            sum.add_times(stencil.weight[t], cells(stencil.cell[t]));
        }
        sum.store(to);
        to += kLanes<A>;
      }
      emit<S>(args, box.row, channel, lanes, first, rows, tile);
    });
  });
}

template <class S>
static void gather_backward_piece(const KernelArgs& args, const Piece& piece) {
  using A = typename AccumulatorOf<S>::Type;
  auto* tile = reinterpret_cast<A*>(args.space.tile);
  for_each_sum<S, A>(args, piece, [&](const Sum<A>& sum, const Box<A>& box, int64_t channel, int lanes) {
    const Stencil<A>& stencil = *box.stencil;
    for_each_tile(args, [&](int32_t first, int32_t rows) {
      fetch<S>(args, box.row, channel, lanes, first, rows, tile);
      const A* from = tile;
      for (int64_t b = int64_t{first} * args.pooled.width; b < int64_t{first + rows} * args.pooled.width; ++b) {
        const Lanes<A> grad = Lanes<A>::load(from);
        from += kLanes<A>;
        for (int32_t t = stencil.begin[b]; t < stencil.begin[b + 1]; ++t) {
          const Cell cell = stencil.cell[t];
          if (cell.y < sum.row || cell.y >= sum.row_end) continue;
          A* to = sum.at(cell.y, cell.x);
          Lanes<A> total = Lanes<A>::load(to);
          total.add_times(stencil.weight[t], grad);
          total.store(to);
        }
      }
    });
  });
}

// The derivative of one bin's values times their gradient, with respect to what its taps' rates follow. False if it is
// not finite.
template <class A, int N, class At>
static ROI_INLINE bool rate_sums(const Stencil<A>& stencil, int64_t b, const Lanes<A>& grad, At&& at, double* sums) {
  Lanes<A> rate[N];
  for (int k = 0; k < N; ++k) rate[k] = Lanes<A>::fill(0);
  for (int32_t t = stencil.begin[b]; t < stencil.begin[b + 1]; ++t) {
    const Lanes<A> value = at(stencil.cell[t]);
    for (int k = 0; k < N; ++k) rate[k].add_times(stencil.rates[int64_t{t} * N + k], value);
  }
  double all = 0;
  for (int k = 0; k < N; ++k) all += sums[k] = rate[k].times(grad).sum();
  return all - all == 0;
}

template <class S, class A, Form F>
static ROI_INLINE void box_grad_of_form(const KernelArgs& args, const Piece& piece) {
  constexpr int n = rates_of(F), own = own_rates(F), shared = n - own;
  const auto* boxes = static_cast<const Box<A>*>(piece.boxes);
  const int64_t bins = int64_t{args.pooled.height} * args.pooled.width;
  auto* tile = reinterpret_cast<A*>(args.space.tile);
  for_each_block<S, A>(args, piece, [&](const View<A>& view, int64_t i, int64_t channel, int lanes) {
    const Box<A>& box = boxes[i];
    if (!box.y.touched) return;
    const Cells<A> cells(view, box);
    double* result = piece.box_grad + i * (shared + own * bins);
    for_each_tile(args, [&](int32_t first, int32_t rows) {
      fetch<S>(args, box.row, channel, lanes, first, rows, tile);
      for (int64_t b = int64_t{first} * args.pooled.width; b < int64_t{first + rows} * args.pooled.width; ++b) {
        const Lanes<A> grad = Lanes<A>::load(tile + (b - int64_t{first} * args.pooled.width) * kLanes<A>);
        double sums[n];
        if (!rate_sums<A, n>(*box.stencil, b, grad, cells, sums))
          rate_sums<A, n>(*box.stencil, b, grad, [&](const Cell& cell) { return finite_lanes(cells(cell)); }, sums);
        for (int k = 0; k < shared; ++k) result[k] += sums[k];
        for (int k = 0; k < own; ++k) result[shared + k * bins + b] += sums[shared + k];
      }
    });
  });
}

template <class S>
static void gather_box_grad_piece(const KernelArgs& args, const Piece& piece) {
  using A = typename AccumulatorOf<S>::Type;
  args.kind == Kind::moved ? box_grad_of_form<S, A, Form::moved>(args, piece)
                           : box_grad_of_form<S, A, Form::rotated>(args, piece);
}

const Kernel gather_forward_kernels[] = ROI_EACH_TYPE(gather_forward_piece);
const Kernel gather_backward_kernels[] = ROI_EACH_TYPE(gather_backward_piece);
const Kernel gather_box_grad_kernels[] = ROI_EACH_TYPE(gather_box_grad_piece);

}  // namespace roialign::ROI_SET
