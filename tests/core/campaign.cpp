// Random calls into the core, meant to be run under sanitizers: every buffer is a heap block of exactly the size that
// its shape and strides reach, so that a read or write one element too far is seen.
//
//   campaign random SECONDS SEED    sizes, strides, dtypes, ranks, kinds and boxes of every sort, on one thread at a
//   time; answers must be those of a plain loop
//   campaign threads SECONDS SEED   four threads call at once, each through a pool of two; answers must agree to the
//                                   bit
//   campaign write FILE SEED        the answers of this machine's best kernels to 100 such calls
//   campaign compare FILE SEED      those of another machine, or system, or compiler: whether they agree
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "answers.h"
#include "core.h"
#include "gathered.h"
#include "kernels/kernels.h"
#include "loop.h"
#include "parallel.h"

namespace {

using namespace roialign;

// A pool as simple as one can be: a fresh thread for each range.
int32_t parallel_for(int64_t begin, int64_t end, int64_t, ParallelBody body, void* context) {
  std::vector<std::thread> threads;
  for (int64_t i = begin; i < end; ++i) threads.emplace_back([=] { body(i, i + 1, context); });
  for (std::thread& thread : threads) thread.join();
  return 0;
}
int32_t two_threads(uint32_t* threads) {
  *threads = 2;
  return 0;
}

// The same numbers from every standard library, whose distributions are their own.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int64_t between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(engine_() % static_cast<uint64_t>(high - low + 1));
  }
  bool chance(double p) { return uniform() < p; }
  double near(double size) {  // nearly normal, without a function that rounds in its own way
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += uniform();
    return size / 2 + size * sum;
  }
  template <class T>
  T pick(std::initializer_list<T> from) {
    return from.begin()[between(0, static_cast<int64_t>(from.size()) - 1)];
  }

 private:
  double uniform() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }
  std::mt19937_64 engine_;
};

int64_t item_size(DType type) { return kDTypes[static_cast<int>(type)].bytes; }

struct Tensor {
  Bytes bytes;
  Level level;
};

// A map with strides of some layout; `dense` ones are contiguous or channels_last.
Tensor make_map(Random& random, DType type, int64_t n, int64_t c, const int64_t (&lengths)[3], bool dense) {
  Tensor tensor;
  Level& level = tensor.level;
  level.images = n, level.channels = c, level.depth = lengths[0], level.height = lengths[1], level.width = lengths[2];
  const int64_t size[5] = {n, c, level.depth, level.height, level.width};
  int order[5] = {0, 1, 2, 3, 4};  // from the slowest dimension
  if (random.chance(0.5)) order[1] = 2, order[2] = 3, order[3] = 4, order[4] = 1;
  if (!dense && random.chance(0.3)) std::swap(order[random.between(0, 4)], order[random.between(0, 4)]);
  int64_t stride = dense ? 1 : random.pick<int64_t>({1, 1, 1, 2, 3});
  int64_t last = 0;
  for (int i = 4; i >= 0; --i) {
    level.stride[order[i]] = !dense && random.chance(0.05) ? 0 : stride;
    last += level.stride[order[i]] * std::max<int64_t>(size[order[i]] - 1, 0);
    stride *= std::max<int64_t>(size[order[i]], 1);
    if (!dense && random.chance(0.2)) stride += random.between(1, 5);
  }
  const bool empty = n * c * level.cells() == 0;
  tensor.bytes.resize(static_cast<size_t>(empty ? 0 : (last + 1) * item_size(type)));
  for (char& byte : tensor.bytes) byte = static_cast<char>(random.between(0, 63));  // small numbers of every type
  level.data = tensor.bytes.data();
  level.scale_y = random.pick({1.0, 0.25, 0.3, 2.0, 1e-3});
  level.scale_x = random.chance(0.8) ? level.scale_y : random.pick({1.0, 0.5, 7.0});
  level.scale_z = random.chance(0.8) ? level.scale_y : random.pick({1.0, 0.5, 7.0});
  return tensor;
}

// A long map of one row or one column, beyond the cells that a float counts; boxes at its far end.
constexpr int64_t kLong = (int64_t{1} << 24) + 3;

template <class T>
void fill_rois(Random& random, Bytes& bytes, const Call& call, int64_t images, double size, double at) {
  const int64_t columns = call.columns(), rank = call.rank;
  bytes.resize(static_cast<size_t>(call.boxes * columns) * sizeof(T));
  const double odd[] = {0,
                        -1,
                        0.5,
                        -0.5,
                        size,
                        size + 1,
                        1e5,
                        1e9,
                        -1e9,
                        1e30,
                        -1e30,
                        3.4e38,
                        NAN,
                        -NAN,
                        INFINITY,
                        -INFINITY,
                        1e-30,
                        4.9e-324,
                        std::floor(size / 2)};
  for (int64_t i = 0; i < call.boxes * columns; ++i) {
    const int64_t column = i % columns;
    double value = column <= 2 * rank ? at + random.near(size) : random.near(1);
    if (!at && random.chance(0.15)) value = odd[random.between(0, static_cast<int64_t>(std::size(odd)) - 1)];
    if (random.chance(0.3)) value = std::floor(2 * value) / 2;  // cells' centres and edges, aligned or not
    if (column == 0) value = images ? static_cast<double>(random.between(0, images - 1)) : 0;
    if (column == 0 && random.chance(0.002)) value = odd[random.between(5, 18)];
    if (column > rank && column <= 2 * rank &&
        random.chance(0.1)) {  // the upper edge: a cell, nothing, next to nothing or a world from the lower
      T lower;
      std::memcpy(&lower, bytes.data() + static_cast<size_t>(i - rank) * sizeof(T), sizeof(T));
      value =
          static_cast<double>(lower) + random.pick<double>({1, 1, 0, -1, 1e-3, 1e-9, 1e-14, -1e-14, 1e6, -1e6, 1e17});
    }
    const T typed = static_cast<T>(value);
    std::memcpy(bytes.data() + static_cast<size_t>(i) * sizeof(T), &typed, sizeof(T));
  }
}

// Differences that rounding explains: of the weights and the sums, and of the stored value.
bool agrees(double got, const loop::Total& wanted, DType type) {
  constexpr double relative[] = {2e-6, 1e-11, 2e-3, 1e-2}, least[] = {1e-30, 1e-30, 1e-7, 1e-30};  // by DType
  const auto of = static_cast<size_t>(type);
  return std::abs(got - wanted.value) <= relative[of] * wanted.size + least[of];
}

// Holds the pooled values of one channel, and then the gradient to it, to those of a plain loop.
class Held {
 public:
  Held(const Call& call, int64_t channel) : call_(call), channel_(channel) {
    for (int64_t k = 0; k < call.boxes; ++k) boxes_.emplace_back(call, k);
  }

  bool pooled_agrees() {
    for (int64_t k = 0; k < call_.boxes; ++k) {
      loop::Box& box = boxes_[static_cast<size_t>(k)];
      for (int64_t b = 0; b < bins() && !box.left_out; ++b) {
        const double got = pooled(k, b, channel_);
        if (!box.finite ? got == got : !agrees(got, box.pooled(b, channel_), call_.dtype)) return false;
      }
    }
    return true;
  }
  bool gradient_agrees(const std::vector<Level>& grads) {
    std::vector<std::vector<loop::Total>> wanted;
    for (const Level& grad : grads) wanted.emplace_back(static_cast<size_t>(grad.images * grad.cells()));
    for (int64_t k = 0; k < call_.boxes; ++k) {
      loop::Box& box = boxes_[static_cast<size_t>(k)];
      if (box.left_out) return true;
      for (int64_t b = 0; b < bins() && box.finite; ++b) {
        box.pooled(b, channel_);
        if (box.close) return true;
        box.spread(b, pooled(k, b, channel_), wanted[static_cast<size_t>(box.level_index())]);
      }
    }
    for (size_t l = 0; l < grads.size(); ++l)
      for (size_t i = 0; i < wanted[l].size(); ++i)
        if (!agrees(gradient(grads[l], static_cast<int64_t>(i)), wanted[l][i], call_.dtype)) return false;
    return true;
  }
  // In float64, and of all channels. A maximum may hang on which of two samples is greater.
  bool box_gradient_agrees(const Bytes& box_grad) {
    const auto* got = reinterpret_cast<const double*>(box_grad.data());
    const double relative = call_.dtype == DType::float64 ? 1e-9 : 4e-6;  // of an integral over 1e-3 of a cell
    for (int64_t k = 0; k < call_.boxes && call_.kind != Kind::max; ++k, got += call_.columns()) {
      const loop::Box& box = boxes_[static_cast<size_t>(k)];
      std::vector<loop::Total> wanted(static_cast<size_t>(call_.columns()));
      for (int64_t b = 0; b < bins() && box.finite && !box.left_out; ++b)
        box.move(b, [&](int64_t channel) { return pooled(k, b, channel); }, wanted);
      for (size_t i = 0; i < wanted.size() && !box.left_out; ++i)
        if (!(std::abs(got[i] - wanted[i].value) <= relative * wanted[i].size + 1e-30)) return false;
    }
    return true;
  }

 private:
  int64_t bins() const { return int64_t{call_.pooled_d} * call_.pooled_h * call_.pooled_w; }
  double pooled(int64_t box, int64_t bin, int64_t channel) const {
    const int64_t channels = call_.levels[0].channels;
    const int64_t at = call_.pooled_channels_last ? (box * bins() + bin) * channels + channel
                                                  : (box * channels + channel) * bins() + bin;
    return loop::number(call_.pooled + at * item_size(call_.dtype), call_.dtype);
  }
  double gradient(const Level& grad, int64_t i) const {  // of cell i of a channel of all images
    int64_t at = channel_ * grad.stride[1] + i / grad.cells() * grad.stride[0];
    i %= grad.cells();
    at += i % grad.width * grad.stride[4];
    at += i / grad.width % grad.height * grad.stride[3];
    at += i / grad.width / grad.height * grad.stride[2];
    return loop::number(grad.data + at * item_size(call_.dtype), call_.dtype);
  }

  const Call& call_;
  int64_t channel_;
  std::vector<loop::Box> boxes_;
};

[[noreturn]] void fail(uint64_t seed, const char* what) {
  std::fprintf(stderr, "seed %llu: %s\n", static_cast<unsigned long long>(seed), what);
  std::exit(1);
}

// One random call in all three directions; returns everything it wrote, and adds its boxes to `boxes`.
Answers one_case(uint64_t seed, int64_t& boxes) {
  Random random(seed);
  Call call;
  call.kind = static_cast<Kind>(random.between(0, static_cast<int64_t>(std::size(kKinds)) - 1));
  call.dtype = static_cast<DType>(random.between(0, 3));
  call.rank = info(call.kind).planar() ? 2 : random.pick({1, 2, 2, 3});
  const bool is_long = call.rank < 3 && random.chance(0.0005);
  const int64_t n = is_long ? 1 : random.between(0, 3);
  const int64_t c = is_long ? 1 : random.pick<int64_t>({0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 33, 40});
  // A long map of many bins' own channels would fill the memory.
  const int64_t most_bins = is_long && info(call.kind).sensitive ? 1 : call.rank == 3 ? 5 : 9;
  const int64_t most_cells = call.rank == 3 ? 12 : 40;
  if (call.rank == 3) call.pooled_d = static_cast<int32_t>(random.between(1, most_bins));
  if (call.rank > 1) call.pooled_h = static_cast<int32_t>(random.between(1, most_bins));
  call.pooled_w = static_cast<int32_t>(random.between(1, most_bins));
  const int64_t group = call.group();
  std::vector<Tensor> maps, grads;
  std::vector<Level> levels, targets;
  const bool tall = call.rank == 2 && random.chance(0.5);
  for (int64_t l = is_long ? 1 : random.between(1, 3); l > 0; --l) {
    const int64_t lengths[3] = {call.rank == 3 ? random.between(1, most_cells) : 1,
                                is_long         ? (tall ? kLong : 1)
                                : call.rank > 1 ? random.between(1, most_cells)
                                                : 1,
                                is_long ? (tall ? 1 : kLong) : random.between(1, most_cells)};
    maps.push_back(make_map(random, call.dtype, n, c * group, lengths, false));
    grads.push_back(make_map(random, call.dtype, n, c * group, lengths, true));
    levels.push_back(maps.back().level);
    targets.push_back(grads.back().level);
  }
  call.levels = levels.data();
  call.level_count = static_cast<int64_t>(levels.size());
  call.boxes = n ? random.between(0, 30) : 0;
  call.rois_f64 = random.chance(0.4);
  Bytes rois;
  const double at = is_long ? static_cast<double>(kLong) - 20 : 0;
  if (is_long) levels[0].scale_y = levels[0].scale_x = 1;
  const auto size = static_cast<double>(most_cells);
  call.rois_f64 ? fill_rois<double>(random, rois, call, n, size, at)
                : fill_rois<float>(random, rois, call, n, size, at);
  call.rois = rois.data();
  std::vector<int64_t> level_of_box(static_cast<size_t>(call.boxes));
  for (int64_t& level : level_of_box) level = random.between(0, call.level_count - 1);
  if (random.chance(0.02) && call.boxes) level_of_box[0] = random.pick<int64_t>({-1, call.level_count, INT64_MAX});
  if (call.level_count > 1 || random.chance(0.5)) call.level_of_box = level_of_box.data();
  call.sampling_ratio = random.pick<int64_t>({0, 0, 1, 2, 2, 3, 10, 1000, 100000, int64_t{1} << 55, INT64_MAX});
  if (call.kind == Kind::rotated) call.sampling_ratio = std::min<int64_t>(call.sampling_ratio, 10);  // each is visited
  call.aligned = random.chance(0.5);
  call.pooled_channels_last = random.chance(0.3);
  const int64_t bins = int64_t{call.pooled_d} * call.pooled_h * call.pooled_w;
  Bytes pooled(static_cast<size_t>(call.boxes * c * bins * item_size(call.dtype)));
  Bytes box_grad(rois.size());
  call.pooled = pooled.data();

  const int64_t bad = forward(call);
  const bool in_double = call.dtype == DType::float64;
  const bool turns = info(call.kind).form == Form::rotated;  // sines differ by machine
  Answers written = {{call.dtype, pooled, in_double, false, turns}};
  // Float positions round, so that a loop in float64 may find other samples.
  const bool is_held = bad < 0 && call.rois_f64 && c && !is_long && !info(call.kind).planar();
  std::optional<Held> held;
  if (is_held) held.emplace(call, random.between(0, c - 1));
  if (held && !held->pooled_agrees()) fail(seed, "not the pooled values of a plain loop");
  for (char& byte : pooled) byte = static_cast<char>(random.between(0, 63));
  if (backward_input(call, targets.data()) != bad || backward_boxes(call, box_grad.data()) != bad)
    fail(seed, "the directions disagree about the first bad row");
  if (bad >= 0) return {};
  if (held && !held->gradient_agrees(targets)) fail(seed, "not the gradient to the maps of a plain loop");
  if (held && !held->box_gradient_agrees(box_grad)) fail(seed, "not the gradient to the boxes of a plain loop");
  boxes += call.boxes;
  const bool jumps = call.kind == Kind::max || turns;
  for (const Tensor& grad : grads) written.push_back({call.dtype, grad.bytes, in_double, false, jumps});
  written.push_back({call.rois_f64 ? DType::float64 : DType::float32, box_grad, in_double, true, jumps});
  return written;
}

// The answers in a file; `compare` holds what is in it to the answers of this machine.
int exchange(bool compare, const char* path, uint64_t seed) {
  std::fstream file(path, std::ios::binary | (compare ? std::ios::in : std::ios::out));
  int64_t cases = 0, boxes = 0, compared = 0;
  for (; cases < 100; ++cases) {
    for (const Answer& answer : one_case(seed + static_cast<uint64_t>(cases), boxes)) {
      if (!compare) {
        file.write(answer.bytes.data(), static_cast<std::streamsize>(answer.bytes.size()));
        continue;
      }
      Bytes theirs(answer.bytes.size());
      file.read(theirs.data(), static_cast<std::streamsize>(theirs.size()));
      if (!file || (!answer.jumps && !agree(answer, theirs)))
        return std::fprintf(stderr, "seed %lld + %lld: the answers differ\n", static_cast<long long>(seed),
                            static_cast<long long>(cases)),
               1;
      compared += !answer.jumps;
    }
  }
  if (!file || (compare && file.peek() != std::fstream::traits_type::eof()))
    return std::fprintf(stderr, "%s holds other calls\n", path), 1;
  std::printf("%s: %lld cases of %lld boxes, %lld tensors compared\n", kernels().name, static_cast<long long>(cases),
              static_cast<long long>(boxes), static_cast<long long>(compared));
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  const std::string mode = count == 4 ? arguments[1] : "";
  const bool threads = mode == "threads";
  if (!threads && mode != "random" && mode != "write" && mode != "compare")
    return std::fprintf(stderr, "usage: campaign random|threads SECONDS SEED, or write|compare FILE SEED\n"), 2;
  const double seconds = std::atof(arguments[2]);
  uint64_t seed = std::strtoull(arguments[3], nullptr, 10);
  if (!choose_kernels("")) return std::fprintf(stderr, "this machine has none of the instruction sets\n"), 1;
  if (mode == "write" || mode == "compare") return exchange(mode == "compare", arguments[2], seed);
  const auto start = std::chrono::steady_clock::now();
  auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  int64_t cases = 0, boxes = 0;
  for (; elapsed() < seconds; ++seed, ++cases) {
    set_thread_pool(nullptr, nullptr);
    const char* const sets[] = {"baseline", "avx2", "avx512"};
    if (!choose_kernels(sets[seed % 3])) choose_kernels("");
    const Answers alone = one_case(seed, boxes);
    if (!threads) {
      Random random(seed);
      if (!gathered::one_case(random)) return std::fprintf(stderr, "seed %llu\n", (unsigned long long)seed), 1;
      continue;
    }
    set_thread_pool(parallel_for, two_threads);
    std::vector<Answers> answers(4);
    std::vector<std::thread> callers;
    for (Answers& answer : answers)
      callers.emplace_back([&answer, seed] {
        int64_t again = 0;
        answer = one_case(seed, again);
      });
    for (std::thread& caller : callers) caller.join();
    for (const Answers& answer : answers)
      if (answer != alone) fail(seed, "threads change the answer");
  }
  std::printf("%lld cases of %lld boxes passed, 0 failed\n", static_cast<long long>(cases),
              static_cast<long long>(boxes));
  return 0;
}
