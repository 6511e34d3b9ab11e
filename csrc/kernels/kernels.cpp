// The kernels of one instruction set, by name.
#include "kernels/storage-inl.h"

#define ROI_JOIN_(a, b) a##b
#define ROI_JOIN(a, b) ROI_JOIN_(a, b)
#define ROI_STRING_(a) #a
#define ROI_STRING(a) ROI_STRING_(a)

namespace roialign {

const KernelSet ROI_JOIN(kernels_, ROI_SET) = {
    ROI_STRING(ROI_SET),
    {ROI_SET::forward_kernels, ROI_SET::backward_input_kernels, ROI_SET::backward_boxes_kernels},
    {ROI_SET::sensitive_forward_kernels, ROI_SET::sensitive_backward_kernels, ROI_SET::sensitive_box_grad_kernels},
    {ROI_SET::volume_forward_kernels, ROI_SET::volume_backward_kernels, ROI_SET::volume_box_grad_kernels},
    {ROI_SET::gather_forward_kernels, ROI_SET::gather_backward_kernels, ROI_SET::gather_box_grad_kernels},
    ROI_SET::finish_stores};

}  // namespace roialign
