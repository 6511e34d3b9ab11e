// The Python module `roialign._core`: argument unpacking and nothing else.
#include <nanobind/nanobind.h>

#include <limits>
#include <vector>

#include "core.h"
#include "kernels.h"
#include "parallel.h"

namespace nb = nanobind;

namespace roialign {
namespace {

int64_t integer(PyObject* value) {
  const long long result = PyLong_AsLongLong(value);
  if (result == -1 && PyErr_Occurred()) throw nb::python_error();
  return result;
}
double real(PyObject* value) {
  const double result = PyFloat_AsDouble(value);
  if (result == -1 && PyErr_Occurred()) throw nb::python_error();
  return result;
}
template <class P>
P pointer(int64_t address) {
  return reinterpret_cast<P>(static_cast<intptr_t>(address));
}

// (data, N, C, H, W, stride_n, stride_c, stride_h, stride_w, scale_y, scale_x)
Level to_level(PyObject* tuple) {
  if (!PyTuple_Check(tuple) || PyTuple_Size(tuple) != 11) throw nb::value_error("a level is a tuple of 11");
  auto item = [tuple](Py_ssize_t i) { return integer(PyTuple_GetItem(tuple, i)); };
  Level level;
  level.data = pointer<char*>(item(0));
  level.images = item(1);
  level.channels = item(2);
  level.height = item(3);
  level.width = item(4);
  for (Py_ssize_t i = 0; i < 4; ++i) level.stride[i] = item(5 + i);
  level.scale_y = real(PyTuple_GetItem(tuple, 9));
  level.scale_x = real(PyTuple_GetItem(tuple, 10));
  constexpr int64_t most = 1 << 30;  // cells are counted in 32 bits
  if (level.height > most || level.width > most) throw nb::value_error("a map is larger than 2^30 along one axis");
  return level;
}

std::vector<Level> to_levels(nb::handle levels) {
  if (!PyTuple_Check(levels.ptr()) || PyTuple_Size(levels.ptr()) < 1)
    throw nb::value_error("levels is a tuple of at least one level");
  std::vector<Level> result;
  for (Py_ssize_t i = 0; i < PyTuple_Size(levels.ptr()); ++i) {
    result.push_back(to_level(PyTuple_GetItem(levels.ptr(), i)));
    if (result.back().channels != result.front().channels) throw nb::value_error("levels differ in channels");
  }
  return result;
}

// (kind, dtype, rois, rois_f64, K, level_of_box, PH, PW, sampling_ratio, aligned, pooled, pooled_channels_last)
Call to_call(nb::handle tuple, const std::vector<Level>& levels) {
  if (!PyTuple_Check(tuple.ptr()) || PyTuple_Size(tuple.ptr()) != 12) throw nb::value_error("a call is a tuple of 12");
  auto item = [tuple](Py_ssize_t i) { return integer(PyTuple_GetItem(tuple.ptr(), i)); };
  Call call;
  const int64_t kind = item(0), dtype = item(1), height = item(6), width = item(7);
  constexpr int64_t most = 1 << 24;
  if (kind < 0 || kind > 3 || dtype < 0 || dtype > 3) throw nb::value_error("unknown kind or dtype");
  if (height < 1 || width < 1 || height > most || width > most) throw nb::value_error("output size out of range");
  call.kind = static_cast<Kind>(kind);
  call.dtype = static_cast<DType>(dtype);
  call.levels = levels.data();
  call.level_count = static_cast<int64_t>(levels.size());
  call.rois = pointer<const void*>(item(2));
  call.rois_f64 = item(3) != 0;
  call.boxes = item(4);
  call.level_of_box = pointer<const int64_t*>(item(5));
  call.pooled_h = static_cast<int32_t>(height);
  call.pooled_w = static_cast<int32_t>(width);
  call.sampling_ratio = item(8);
  call.aligned = item(9) != 0;
  call.pooled = pointer<char*>(item(10));
  call.pooled_channels_last = item(11) != 0;
  return call;
}

int64_t py_forward(nb::handle call_tuple, nb::handle levels_tuple) {
  const std::vector<Level> levels = to_levels(levels_tuple);
  const Call call = to_call(call_tuple, levels);
  const nb::gil_scoped_release released;
  return forward(call);
}

int64_t py_backward_input(nb::handle call_tuple, nb::handle levels_tuple, nb::handle grads_tuple) {
  const std::vector<Level> levels = to_levels(levels_tuple), grads = to_levels(grads_tuple);
  const Call call = to_call(call_tuple, levels);
  if (grads.size() != levels.size()) throw nb::value_error("one gradient for each level");
  const nb::gil_scoped_release released;
  return backward_input(call, grads.data());
}

int64_t py_backward_boxes(nb::handle call_tuple, nb::handle levels_tuple, int64_t grad_rois) {
  const std::vector<Level> levels = to_levels(levels_tuple);
  const Call call = to_call(call_tuple, levels);
  const nb::gil_scoped_release released;
  return backward_boxes(call, pointer<void*>(grad_rois));
}

}  // namespace
}  // namespace roialign

NB_MODULE(_core, m) {
  using namespace roialign;
  m.def("forward", &py_forward, nb::arg("call"), nb::arg("levels"));
  m.def("backward_input", &py_backward_input, nb::arg("call"), nb::arg("levels"), nb::arg("grads"));
  m.def("backward_boxes", &py_backward_boxes, nb::arg("call"), nb::arg("levels"), nb::arg("grad_rois"));
  m.def("set_thread_pool", [](int64_t parallel_for, int64_t get_num_threads) {
    set_thread_pool(pointer<ParallelFor>(parallel_for), pointer<GetNumThreads>(get_num_threads));
  });
  m.def("thread_count", &thread_count);
  m.def("choose_kernels", [](const char* name) { return choose_kernels(name); });
  m.def("kernels", [] { return kernels().name; });
}
