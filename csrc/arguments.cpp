#include "arguments.h"

#include <algorithm>
#include <initializer_list>
#include <iterator>
#include <string>

namespace nb = nanobind;

namespace roialign {
namespace {

constexpr int64_t kMostBins = 1 << 24;   // along one axis; a float32 position counts no further
constexpr int64_t kMostCells = 1 << 30;  // along one axis; cells are counted in 32 bits

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
  int64_t size[4] = {1, 1, 1, 1}, stride[4] = {0, 0, 0, 0};
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
    constexpr int axes[4] = {0, 1, 2, 3};
    return ordered(axes);
  }
  bool channels_last() const {
    constexpr int axes[4] = {0, 2, 3, 1};
    return ordered(axes);
  }
};

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
  if (array.rank != rank) refuse(name, array.shape(), form);
  for (int64_t i = 0; i < rank; ++i) {
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

Array to_map(nb::handle tuple, const std::string& name, int64_t dtype) {
  const Array map = to_array(tuple, name, 4, "[N, C, H, W]");
  check_dtype(map, name, is_map_dtype(map.dtype), "float16, bfloat16, float32 or float64");
  check_dtype(map, name, map.dtype == dtype, "one dtype for all maps and the pooled tensor");
  if (map.size[2] > kMostCells || map.size[3] > kMostCells)
    refuse(name, map.shape(), "at most 2**30 cells along one axis");
  check_memory(map, name);
  return map;
}

std::string in_brackets(std::initializer_list<int64_t> sizes) {
  std::string result;
  for (const int64_t size : sizes) result += (result.empty() ? "(" : ", ") + std::to_string(size);
  return result + ")";
}

std::string numbered(const char* name, size_t i) { return name + ("[" + std::to_string(i) + "]"); }

Level to_level(const Array& map) {
  Level level;
  level.data = map.data;
  level.images = map.size[0];
  level.channels = map.size[1];
  level.height = map.size[2];
  level.width = map.size[3];
  std::copy(map.stride, map.stride + 4, level.stride);
  return level;
}

// Any number will do: torchvision's operator takes scales below 0 too, and what is not finite gives NaN.
void read_scales(nb::handle scales, std::vector<Level>& levels) {
  if (nb::len(scales) != 2 * levels.size())
    refuse("scales", text(scales), "y and x for each of " + std::to_string(levels.size()) + " maps");
  for (size_t i = 0; i < levels.size(); ++i) {
    levels[i].scale_y = nb::cast<double>(scales[2 * i]);
    levels[i].scale_x = nb::cast<double>(scales[2 * i + 1]);
  }
}

// A box that lies on a map without cells has nothing to read. Rows whose level does not exist are reported elsewhere.
void check_cells(const Call& call) {
  auto empty = [&](int64_t l) { return call.levels[l].height == 0 || call.levels[l].width == 0; };
  bool any = false;
  for (int64_t l = 0; l < call.level_count; ++l) any |= empty(l);
  for (int64_t k = 0; any && k < call.boxes; ++k) {
    const int64_t l = call.level_of_box ? call.level_of_box[k] : 0;
    if (l < 0 || l >= call.level_count || !empty(l)) continue;
    const Level& level = call.levels[l];
    refuse("boxes",
           "row " + std::to_string(k) + " on an empty feature map of height " + std::to_string(level.height) +
               " and width " + std::to_string(level.width),
           "height and width of at least 1");
  }
}

std::vector<Level> to_levels(nb::handle maps, int64_t dtype) {
  const size_t count = nb::len(maps);
  if (count == 0) refuse("features", "no maps", "at least one");
  std::vector<Level> levels;
  for (size_t i = 0; i < count; ++i) {
    const std::string name = numbered("features", i);
    const Array map = to_map(nb::object(maps[i]), name, dtype);
    levels.push_back(to_level(map));
    if (levels[i].images != levels[0].images || levels[i].channels != levels[0].channels)
      refuse(name, map.shape(),
             "the " + std::to_string(levels[0].images) + " images and " + std::to_string(levels[0].channels) +
                 " channels of features[0]");
  }
  return levels;
}

void read_rois(nb::handle tuple, Call& call) {
  const Array rois = to_array(tuple, "rois", 2, "[K, 5]");
  call.rois_f64 = is(rois.dtype, DType::float64);
  check_dtype(rois, "rois", call.rois_f64 || is(rois.dtype, DType::float32), "float32 or float64");
  if (rois.size[1] != 5) refuse("rois", rois.shape(), "[K, 5]");
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
  if (nb::len(size) != 2) refuse("output_size", text(size), "(height, width)");
  const auto height = nb::cast<int64_t>(size[0]), width = nb::cast<int64_t>(size[1]);
  if (height < 1 || width < 1 || height > kMostBins || width > kMostBins)
    refuse("output_size", text(size), "1 to 2**24 bins along each axis");
  call.pooled_h = static_cast<int32_t>(height);
  call.pooled_w = static_cast<int32_t>(width);
}

void read_pooled(const Array& pooled, const char* named, Call& call) {
  const int64_t group = call.group(), channels = call.levels[0].channels / group;
  if (call.levels[0].channels % group)
    refuse("input", std::to_string(call.levels[0].channels) + " channels",
           "a multiple of the " + std::to_string(group) + " bins");
  if (pooled.size[0] != call.boxes || pooled.size[1] != channels || pooled.size[2] != call.pooled_h ||
      pooled.size[3] != call.pooled_w)
    refuse(named, pooled.shape(), in_brackets({call.boxes, channels, call.pooled_h, call.pooled_w}));
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
  call.sampling_ratio = sampling_ratio;
  call.aligned = aligned;

  const Array pooled = to_array(pooled_, named, 4, "[K, C, height, width]");
  check_dtype(pooled, named, is_map_dtype(pooled.dtype), "float16, bfloat16, float32 or float64");
  call.dtype = static_cast<DType>(pooled.dtype);

  arguments.levels = to_levels(maps, pooled.dtype);
  read_scales(scales, arguments.levels);
  call.levels = arguments.levels.data();
  call.level_count = static_cast<int64_t>(arguments.levels.size());

  read_rois(rois, call);
  read_level(level, call);
  read_size(size, call);
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
    const Array grad = to_map(nb::object(grads[i]), numbered("shapes", i), static_cast<int64_t>(arguments.call.dtype));
    result.push_back(to_level(grad));
    const Level &is = result[i], &has = levels[i];
    if (is.images != has.images || is.channels != has.channels || is.height != has.height || is.width != has.width)
      refuse(
          numbered("shapes", i), grad.shape(),
          in_brackets({has.images, has.channels, has.height, has.width}) + ", the shape of " + numbered("features", i));
  }
  return result;
}

}  // namespace roialign
