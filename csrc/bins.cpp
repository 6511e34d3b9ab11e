#include "bins.h"

#include <algorithm>

#include "parallel.h"

namespace roialign {
namespace {

// How many rows of the map a bin touches if they are few, else 0.
template <class A>
int32_t few_rows(const Box<A>& box, int32_t bin) {
  if (!box.finite) return 0;
  const int32_t taps = box.y.bins.begin[bin + 1] - box.y.bins.begin[bin];
  return taps <= kBinRows ? taps : 0;
}

// The rows of one bin of some boxes, those of equally many together: what is read then is no surprise to the processor.
template <class A>
void order_rows(const Box<A>* boxes, const std::vector<int32_t>& order, int32_t bin, int64_t width, BinRows<A>* rows,
                int32_t* ends) {
  int32_t at[kBinRows + 2] = {};
  for (const int32_t k : order) ++at[few_rows(boxes[k], bin) + 1];
  for (int i = 0; i <= kBinRows; ++i) ends[i] = at[i + 1] += at[i];
  for (const int32_t k : order) {
    const Box<A>& box = boxes[k];
    const int32_t taps = few_rows(box, bin);
    BinRows<A>& row = rows[at[taps]++];
    row.box = k;
    for (int32_t i = 0; i < taps; ++i) {
      const int32_t t = box.y.bins.begin[bin] + i;
      row.at[i] = box.y.cell[box.y.bins.index[t]] * width;
      row.weight[i] = box.y.bins.weight[t];
    }
  }
}

template <class A>
int32_t few_columns(const Box<A>& box, int32_t bin, int64_t width, A* weight) {
  if (!box.finite) return -1;
  const Matrix<A>& bins = box.x.bins;
  const int32_t first = bins.begin[bin], end = bins.begin[bin + 1];
  if (first == end) return -1;
  const auto limit = static_cast<int32_t>(std::max<int64_t>(width - kBinColumns, 0));
  const int32_t at = std::min(box.x.cell[bins.index[first]], limit);
  if (box.x.cell[bins.index[end - 1]] - at >= kBinColumns) return -1;
  for (int32_t t = first; t < end; ++t) weight[box.x.cell[bins.index[t]] - at] = bins.weight[t];
  return at;
}

}  // namespace

template <class A>
BinTables<A>::BinTables(const Call& call, const Plan<A>& plan, int64_t threads)
    : rows_(plan.boxes.size() * static_cast<size_t>(call.pooled_h)),
      column_(plan.boxes.size() * static_cast<size_t>(call.pooled_w)),
      weight_(column_.size() * kBinColumns) {
  struct Batch {
    int64_t begin, end, width;
  };
  std::vector<Batch> batches;
  for (const Group& group : plan.groups) {
    first_.push_back(batches.size());
    const int64_t width = std::max<int64_t>(call.levels[group.level].width, kBinColumns);
    for (int64_t begin = group.begin; begin < group.end; begin += kBinBoxes)
      batches.push_back({begin, std::min(group.end, begin + kBinBoxes), width});
  }
  constexpr size_t classes = kBinRows + 1;
  const int64_t height = call.pooled_h, bins = height + call.pooled_w;
  ends_.resize(batches.size() * static_cast<size_t>(height) * classes);
  for (size_t i = 0; i < batches.size(); ++i) {
    const auto begin = static_cast<size_t>(batches[i].begin);
    bins_.push_back(
        {rows_.data() + begin * static_cast<size_t>(height), ends_.data() + i * static_cast<size_t>(height) * classes,
         column_.data() + begin * static_cast<size_t>(call.pooled_w),
         weight_.data() + begin * static_cast<size_t>(call.pooled_w) * kBinColumns, batches[i].end - batches[i].begin});
  }
  for_each_task(static_cast<int64_t>(batches.size()) * bins, threads, [&](auto& next) {
    std::vector<int32_t> order;
    for (int64_t task; (task = next()) >= 0;) {
      const auto i = static_cast<size_t>(task / bins);
      const Batch& batch = batches[i];
      const Box<A>* boxes = plan.boxes.data() + batch.begin;
      const int64_t count = batch.end - batch.begin;
      const auto bin = static_cast<int32_t>(task % bins), q = bin - call.pooled_h;
      if (q < 0) {
        order.resize(static_cast<size_t>(count));
        for (int32_t k = 0; k < count; ++k) order[static_cast<size_t>(k)] = k;
        std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return boxes[a].row < boxes[b].row; });
        const auto from = static_cast<size_t>(batch.begin * height + bin * count);
        order_rows(boxes, order, bin, batch.width, &rows_[from],
                   &ends_[(i * static_cast<size_t>(height) + static_cast<size_t>(bin)) * classes]);
      } else {
        const auto from = static_cast<size_t>(batch.begin * call.pooled_w + q * count);
        for (int64_t k = 0; k < count; ++k)
          column_[from + static_cast<size_t>(k)] =
              few_columns(boxes[k], q, batch.width, &weight_[(from + static_cast<size_t>(k)) * kBinColumns]);
      }
    }
  });
}

template class BinTables<float>;
template class BinTables<double>;

}  // namespace roialign
