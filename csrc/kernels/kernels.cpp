// The kernels for one instruction set. CMake compiles this file once per set, with ROI_SET naming it. Everything lives
// in that set's own namespace and nothing from the standard library is used, so that the linker cannot merge code of
// different sets.
#include "kernels/kernels.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace roialign {
namespace ROI_SET {

#include "lanes-inl.h"
#include "edge-inl.h"
#include "forward-inl.h"
#include "backward-inl.h"
#include "box_grad-inl.h"

}  // namespace ROI_SET

#define ROI_JOIN_(a, b) a##b
#define ROI_JOIN(a, b) ROI_JOIN_(a, b)
#define ROI_STRING_(a) #a
#define ROI_STRING(a) ROI_STRING_(a)
#define ROI_EACH_TYPE(f) {ROI_SET::f<float>, ROI_SET::f<double>, ROI_SET::f<ROI_SET::Half>, ROI_SET::f<ROI_SET::BFloat>}

const KernelSet ROI_JOIN(kernels_, ROI_SET) = {
    ROI_STRING(ROI_SET),
    ROI_EACH_TYPE(forward_piece),
    ROI_EACH_TYPE(backward_input_piece),
    ROI_EACH_TYPE(backward_boxes_piece),
    ROI_SET::finish_stores,
};

}  // namespace roialign
