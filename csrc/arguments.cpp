#include "arguments.h"

#include <algorithm>
#include <initializer_list>
#include <iterator>
#include <string>

namespace nb = nanobind;

namespace roialign {
namespace {

constexpr int64_t kMostBins = 1 << 24;     // along one axis; a float32 position counts no further
constexpr int64_t kMostVisited = 1 << 26;  // samples of one box, of a kind that visits each
constexpr int64_t kMostCells = 1 << 30;    // along one axis; cells are counted in 32 bits
constexpr int64_t kMostVolume = int64_t{1} << 60;

// What errors say of a map of rank 1, 2 and 3, by rank - 1.
struct Wording {
  const char *map, *pooled, *size, *scales, *lengths;
};
constexpr Wording kWordings[] = {
    {"[N, C, L]", "[K, C, length]", "(length,)", "one", "a length of at least 1"},
    {"[N, C, H, W]", "[K, C, height, width]", "(height, width)", "y and x", "height and width of at least 1"},
    {"[N, C, D, H, W]", "[K, C, depth, height, width]", "(depth, height, width)", "z, y and x",
     "depth, height and width of at least 1"}};
const Wording& wording(const Call& call) { return kWordings[call.rank - 1]; }

int64_t integer(PyObject* value) {
  const long long result = PyLong_AsLongLong(value);
  if (result == -1 && PyErr_Occurred()) throw nb::python_error();
  return result;
}

std::string text(nb::handle value) { return nb::str(value).c_str(); }

[[noreturn]] void refuse(const std::string& name, const std::string& came, const std::string& expected) {
  throw nb::value_error((name + ": got " + came + "; expected " + expected).c_str());
}

struct Array {
  char* data;
  int64_t bytes, dtype, rank;  // the dtype's place in kDTypes, or none; checked before the memory is
  int64_t size[5] = {1, 1, 1, 1, 1}, stride[5] = {0, 0, 0, 0, 0};
  nb::handle tensor;

  std::string shape() const {
    std::string sizes;
    for (nb::handle length : tensor.attr("shape")) sizes += (sizes.empty() ? "" : ", ") + text(length);
    return "a tensor of shape (" + sizes + ")";
  }
  bool empty() const { return std::count(size, size + rank, 0) > 0; }

  // Memory from the first element to the end of the last one; -1 if that is no int64.
  int64_t needed() const {
    if (empty()) return 0;
    int64_t last = 0, along = 0, bytes_ = 0;
    for (int64_t i = 0; i < rank; ++i)
      if (__builtin_mul_overflow(size[i] - 1, stride[i], &along) || __builtin_add_overflow(last, along, &last))
        return -1;
    const int64_t item = kDTypes[dtype].bytes;
    return __builtin_mul_overflow(last, item, &bytes_) || __builtin_add_overflow(bytes_, item, &bytes_) ? -1 : bytes_;
  }

  // Whether the elements lie side by side with the axes in this order, the slowest first.
  bool ordered(const int* axes) const {
    int64_t expected = 1;
    if (empty()) return true;
    for (int64_t i = rank - 1; i >= 0; --i) {
      const int axis = axes[i];
      if (size[axis] != 1 && stride[axis] != expected) return false;
      if (__builtin_mul_overflow(expected, size[axis], &expected)) return false;
    }
    return true;
  }
  bool contiguous() const {
    constexpr int axes[5] = {0, 1, 2, 3, 4};
    return ordered(axes);
  }
  bool channels_last() const {
    const auto last = static_cast<int>(rank) - 1;
    int axes[5] = {0, 1, 1, 1, 1};
    for (int i = 1; i < last; ++i) axes[i] = i + 1;
    return ordered(axes);
  }
};

// A rank below 0: that of a map.
Array to_array(nb::handle tuple, const std::string& name, int64_t rank, const char* form) {
  PyObject* items[6];
  if (!PyTuple_Check(tuple.ptr()) || PyTuple_Size(tuple.ptr()) != 6) throw nb::type_error("an array is a tuple of 6");
  for (int i = 0; i < 6; ++i) items[i] = PyTuple_GetItem(tuple.ptr(), i);
  Array array;
  array.data = reinterpret_cast<char*>(static_cast<intptr_t>(integer(items[0])));
  array.bytes = integer(items[1]);
  array.dtype = integer(items[2]);
  array.tensor = items[5];
  array.rank = PyTuple_Size(items[3]);
  if (rank >= 0 ? array.rank != rank : array.rank < 3 || array.rank > 5) refuse(name, array.shape(), form);
  for (int64_t i = 0; i < array.rank; ++i) {
    array.size[i] = integer(PyTuple_GetItem(items[3], i));
    array.stride[i] = integer(PyTuple_GetItem(items[4], i));
  }
  return array;
}

void check_dtype(const Array& array, const std::string& name, bool fits, const char* expected) {
  if (!fits)
    throw nb::type_error((name + ": got " + text(array.tensor.attr("dtype")) + "; expected " + expected).c_str());
}

void check_memory(const Array& array, const std::string& name) {
  const int64_t needed = array.needed();
  if (needed == 0 || (array.data && needed > 0 && needed <= array.bytes)) return;
  refuse(name, array.shape() + " with " + std::to_string(array.data ? array.bytes : 0) + " bytes of memory",
         needed < 0 ? "less than 2**63" : std::to_string(needed));
}

bool is(int64_t dtype, DType type) { return dtype == static_cast<int64_t>(type); }
bool is_map_dtype(int64_t dtype) { return dtype >= 0 && dtype < kMapDTypes; }

Array to_map(nb::handle tuple, const std::string& name, const Call& call) {
  const auto dtype = static_cast<int64_t>(call.dtype);
  const Array map = to_array(tuple, name, 2 + call.rank, wording(call).map);
  check_dtype(map, name, is_map_dtype(map.dtype), "float16, bfloat16, float32 or float64");
  check_dtype(map, name, map.dtype == dtype, "one dtype for all maps and the pooled tensor");
  int64_t cells = 1;
  for (int64_t i = 2; i < map.rank; ++i) {
    if (map.size[i] > kMostCells) refuse(name, map.shape(), "at most 2**30 cells along one axis");
    if (__builtin_mul_overflow(cells, map.size[i], &cells) || cells > kMostVolume)
      refuse(name, map.shape(), "at most 2**60 cells");
  }
  check_memory(map, name);
  return map;
}

// (first, second, lengths...), the last as many as the call's rank.
std::string shape_text(const Call& call, int64_t first, int64_t second, std::initializer_list<int64_t> lengths) {
  std::string result = "(" + std::to_string(first) + ", " + std::to_string(second);
  for (auto at = lengths.end() - call.rank; at != lengths.end(); ++at) result += ", " + std::to_string(*at);
  return result + ")";
}

std::string numbered(const char* name, size_t i) { return name + ("[" + std::to_string(i) + "]"); }

Level to_level(const Array& map) {
  Level level;
  level.data = map.data;
  level.images = map.size[0];
  level.channels = map.size[1];
  int64_t Level::* const lengths[] = {&Level::depth, &Level::height, &Level::width};
  std::copy(map.stride, map.stride + 2, level.stride);
  const int64_t rank = map.rank - 2;
  for (int64_t i = 0; i < rank; ++i) {
    level.*lengths[3 - rank + i] = map.size[2 + i];
    level.stride[5 - rank + i] = map.stride[2 + i];
  }
  return level;
}

// Any number will do: torchvision's operator takes scales below 0 too, and what is not finite gives NaN.
void read_scales(nb::handle scales, const Call& call, std::vector<Level>& levels) {
  const auto rank = static_cast<size_t>(call.rank);
  if (nb::len(scales) != rank * levels.size())
    refuse("scales", text(scales), wording(call).scales + (" for each of " + std::to_string(levels.size()) + " maps"));
  double Level::* const axes[] = {&Level::scale_x, &Level::scale_y, &Level::scale_z};
  for (size_t i = 0; i < levels.size(); ++i)
    for (size_t axis = 0; axis < rank; ++axis)
      levels[i].*axes[axis] = nb::cast<double>(scales[rank * (i + 1) - 1 - axis]);
}

// A box that lies on a map without cells has nothing to read. Rows whose level does not exist are reported elsewhere.
void check_cells(const Call& call) {
  auto empty = [&](int64_t l) { return call.levels[l].cells() == 0; };
  bool any = false;
  for (int64_t l = 0; l < call.level_count; ++l) any |= empty(l);
  for (int64_t k = 0; any && k < call.boxes; ++k) {
    const int64_t l = call.level_of_box ? call.level_of_box[k] : 0;
    if (l < 0 || l >= call.level_count || !empty(l)) continue;
    const Level& level = call.levels[l];
    const std::string height = std::to_string(level.height), width = std::to_string(level.width);
    const std::string lengths[] = {
        "length " + width, "height " + height + " and width " + width,
        "depth " + std::to_string(level.depth) + ", height " + height + " and width " + width};
    refuse("boxes", "row " + std::to_string(k) + " on an empty feature map of " + lengths[call.rank - 1],
           wording(call).lengths);
  }
}

// The rank of the first map.
int to_rank(nb::handle maps) {
  if (nb::len(maps) == 0) refuse("features", "no maps", "at least one");
  const Array map = to_array(nb::object(maps[0]), "features[0]", -1, "[N, C, L], [N, C, H, W] or [N, C, D, H, W]");
  return static_cast<int>(map.rank) - 2;
}

std::vector<Level> to_levels(nb::handle maps, const Call& call) {
  const size_t count = nb::len(maps);
  std::vector<Level> levels;
  for (size_t i = 0; i < count; ++i) {
    const std::string name = numbered("features", i);
    const Array map = to_map(nb::object(maps[i]), name, call);
    levels.push_back(to_level(map));
    if (levels[i].images != levels[0].images || levels[i].channels != levels[0].channels)
      refuse(name, map.shape(),
             "the " + std::to_string(levels[0].images) + " images and " + std::to_string(levels[0].channels) +
                 " channels of features[0]");
  }
  return levels;
}

void read_rois(nb::handle tuple, Call& call) {
  const std::string form = "[K, " + std::to_string(call.columns()) + "]";
  const Array rois = to_array(tuple, "rois", 2, form.c_str());
  call.rois_f64 = is(rois.dtype, DType::float64);
  check_dtype(rois, "rois", call.rois_f64 || is(rois.dtype, DType::float32), "float32 or float64");
  if (rois.size[1] != call.columns()) refuse("rois", rois.shape(), form);
  if (!rois.contiguous()) refuse("rois", "strides " + text(rois.tensor.attr("stride")()), "contiguous rows");
  check_memory(rois, "rois");
  call.rois = rois.data;
  call.boxes = rois.size[0];
}

void read_level(nb::handle tuple, Call& call) {
  if (tuple.is_none()) {
    if (call.level_count == 1) return;
    refuse("level", "None for " + std::to_string(call.level_count) + " maps", "the index of each box's map");
  }
  const Array level = to_array(tuple, "level", 1, "[K]");
  check_dtype(level, "level", is(level.dtype, DType::int64), "int64");
  if (level.size[0] != call.boxes)
    refuse("level", level.shape(), "one number for each of " + std::to_string(call.boxes) + " boxes");
  if (!level.contiguous()) refuse("level", "strides " + text(level.tensor.attr("stride")()), "contiguous numbers");
  check_memory(level, "level");
  call.level_of_box = reinterpret_cast<const int64_t*>(level.data);
}

void read_size(nb::handle size, Call& call) {
  const auto rank = static_cast<size_t>(call.rank);
  if (nb::len(size) != rank) refuse("output_size", text(size), wording(call).size);
  int32_t Call::* const axes[] = {&Call::pooled_w, &Call::pooled_h, &Call::pooled_d};
  for (size_t axis = 0; axis < rank; ++axis) {
    const auto bins = nb::cast<int64_t>(size[rank - 1 - axis]);
    if (bins < 1 || bins > kMostBins) refuse("output_size", text(size), "1 to 2**24 bins along each axis");
    call.*axes[axis] = static_cast<int32_t>(bins);
  }
}

// Rotated samples cannot be counted in closed form.
void read_ratio(int64_t ratio, Call& call) {
  call.sampling_ratio = ratio;
  const auto samples = static_cast<double>(ratio) * static_cast<double>(ratio) * static_cast<double>(call.bins());
  if (info(call.kind).form == Form::rotated && ratio > 0 && samples > static_cast<double>(kMostVisited))
    refuse("sampling_ratio",
           std::to_string(ratio) + " for output_size=(" + std::to_string(call.pooled_h) + ", " +
               std::to_string(call.pooled_w) + ")",
           "at most 2**26 samples of a box, since each is visited");
}

void read_pooled(const Array& pooled, const char* named, Call& call) {
  const int64_t group = call.group(), channels = call.levels[0].channels / group;
  if (call.levels[0].channels % group)
    refuse("input", std::to_string(call.levels[0].channels) + " channels",
           "a multiple of the " + std::to_string(group) + " bins");
  const std::initializer_list<int64_t> bins{call.pooled_d, call.pooled_h, call.pooled_w};
  if (pooled.size[0] != call.boxes || pooled.size[1] != channels ||
      !std::equal(pooled.size + 2, pooled.size + 2 + call.rank, bins.end() - call.rank))
    refuse(named, pooled.shape(), shape_text(call, call.boxes, channels, bins));
  call.pooled_channels_last = !pooled.contiguous();
  if (call.pooled_channels_last && !pooled.channels_last())
    refuse(named, "strides " + text(pooled.tensor.attr("stride")()), "contiguous or channels_last");
  check_memory(pooled, named);
  call.pooled = pooled.data;
}

}  // namespace

Kind to_kind(int64_t kind) {
  constexpr int64_t count = std::size(kKinds);
  if (kind < 0 || kind >= count) refuse("kind", std::to_string(kind), "0 to " + std::to_string(count - 1));
  return static_cast<Kind>(kind);
}

Arguments to_arguments(Kind kind, nb::handle maps, nb::handle rois, nb::handle level, nb::handle pooled_,
                       const char* named, nb::handle size, nb::handle scales, int64_t sampling_ratio, bool aligned) {
  Arguments arguments;
  Call& call = arguments.call;
  call.kind = kind;
  call.rank = to_rank(maps);
  if (info(kind).planar() && call.rank != 2)
    refuse("kind", std::string(info(kind).name) + " of maps " + wording(call).map, "maps [N, C, H, W]");
  call.aligned = aligned;

  const Array pooled = to_array(pooled_, named, 2 + call.rank, wording(call).pooled);
  check_dtype(pooled, named, is_map_dtype(pooled.dtype), "float16, bfloat16, float32 or float64");
  call.dtype = static_cast<DType>(pooled.dtype);

  arguments.levels = to_levels(maps, call);
  read_scales(scales, call, arguments.levels);
  call.levels = arguments.levels.data();
  call.level_count = static_cast<int64_t>(arguments.levels.size());

  read_size(size, call);
  read_ratio(sampling_ratio, call);
  read_rois(rois, call);
  read_level(level, call);
  read_pooled(pooled, named, call);
  check_cells(call);
  return arguments;
}

std::vector<Level> to_grads(nb::handle grads, const Arguments& arguments) {
  const std::vector<Level>& levels = arguments.levels;
  if (nb::len(grads) != levels.size())
    refuse("shapes", std::to_string(nb::len(grads)) + " maps",
           std::to_string(levels.size()) + ", as there are features");
  std::vector<Level> result;
  for (size_t i = 0; i < levels.size(); ++i) {
    const Array grad = to_map(nb::object(grads[i]), numbered("shapes", i), arguments.call);
    result.push_back(to_level(grad));
    const Level &is = result[i], &has = levels[i];
    if (is.images != has.images || is.channels != has.channels || is.depth != has.depth || is.height != has.height ||
        is.width != has.width)
      refuse(numbered("shapes", i), grad.shape(),
             shape_text(arguments.call, has.images, has.channels, {has.depth, has.height, has.width}) +
                 ", the shape of " + numbered("features", i));
  }
  return result;
}

}  // namespace roialign
