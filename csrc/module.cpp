// The Python module `roialign._core`: what Python calls, and nothing else.
#include <nanobind/nanobind.h>

#include <cstdint>
#include <iterator>
#include <vector>

#include "arguments.h"
#include "core.h"
#include "kernels/kernels.h"
#include "parallel.h"

namespace nb = nanobind;

namespace roialign {
namespace {

template <class P>
P pointer(int64_t address) {
  return reinterpret_cast<P>(static_cast<intptr_t>(address));
}

// Names and their numbers, for Python to hand over.
template <class Info>
nb::dict numbers(const Info& infos) {
  nb::dict result;
  for (size_t i = 0; i < std::size(infos); ++i) result[infos[i].name] = i;
  return result;
}

int64_t py_forward(int64_t kind, nb::handle features, nb::handle rois, nb::handle level, nb::handle output,
                   nb::handle size, nb::handle scales, int64_t sampling_ratio, bool aligned) {
  const Arguments arguments =
      to_arguments(to_kind(kind), features, rois, level, output, "output", size, scales, sampling_ratio, aligned);
  const nb::gil_scoped_release released;
  return forward(arguments.call);
}

int64_t py_backward_input(nb::handle grads, int64_t kind_, nb::handle features, nb::handle rois, nb::handle level,
                          nb::handle grad, nb::handle size, nb::handle scales, int64_t sampling_ratio, bool aligned) {
  const bool given = nb::len(features) > 0;
  const Kind kind = to_kind(kind_);
  if (!given && info(kind).takes_maximum)
    throw nb::value_error("features: got no maps; expected them, as their values decide where a maximum lies");
  const Arguments arguments =
      to_arguments(kind, given ? features : grads, rois, level, grad, "grad", size, scales, sampling_ratio, aligned);
  const std::vector<Level> targets = to_grads(grads, arguments);
  const nb::gil_scoped_release released;
  return backward_input(arguments.call, targets.data());
}

int64_t py_backward_boxes(int64_t grad_rois, int64_t kind, nb::handle features, nb::handle rois, nb::handle level,
                          nb::handle grad, nb::handle size, nb::handle scales, int64_t sampling_ratio, bool aligned) {
  const Arguments arguments =
      to_arguments(to_kind(kind), features, rois, level, grad, "grad", size, scales, sampling_ratio, aligned);
  const nb::gil_scoped_release released;
  return backward_boxes(arguments.call, pointer<void*>(grad_rois));
}

}  // namespace
}  // namespace roialign

NB_MODULE(_core, m) {
  using namespace roialign;
  m.attr("KINDS") = numbers(kKinds);
  m.attr("DTYPES") = numbers(kDTypes);
  m.def("forward", &py_forward, nb::arg("kind"), nb::arg("features"), nb::arg("rois"), nb::arg("level").none(),
        nb::arg("output"), nb::arg("output_size"), nb::arg("scales"), nb::arg("sampling_ratio"), nb::arg("aligned"));
  m.def("backward_input", &py_backward_input, nb::arg("grads"), nb::arg("kind"), nb::arg("features"), nb::arg("rois"),
        nb::arg("level").none(), nb::arg("grad"), nb::arg("output_size"), nb::arg("scales"), nb::arg("sampling_ratio"),
        nb::arg("aligned"));
  m.def("backward_boxes", &py_backward_boxes, nb::arg("grad_rois"), nb::arg("kind"), nb::arg("features"),
        nb::arg("rois"), nb::arg("level").none(), nb::arg("grad"), nb::arg("output_size"), nb::arg("scales"),
        nb::arg("sampling_ratio"), nb::arg("aligned"));
  m.def("set_thread_pool", [](int64_t parallel_for, int64_t get_num_threads) {
    set_thread_pool(pointer<ParallelFor>(parallel_for), pointer<GetNumThreads>(get_num_threads));
  });
  m.def("thread_count", &thread_count);
  m.def("choose_kernels", [](const char* name) { return choose_kernels(name); });
  m.def("kernels", [] { return kernels().name; });
}
