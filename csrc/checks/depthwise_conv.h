#pragma once
// Arguments of depthwise convolutions with a task axis, checked once for every device.
#include <ATen/core/Tensor.h>

#include "window.h"

namespace metasparse {

// x (T, N, C, H, W), weight (T, C, 1, kh, kw), of one kind.
void check_depthwise_conv(const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef stride,
                          at::IntArrayRef padding);

// grad (T, N, C, Ho, Wo).
void check_depthwise_conv_input_grad(const at::Tensor& grad, const at::Tensor& weight,
                                     const AnySizes& input_size, at::IntArrayRef stride,
                                     at::IntArrayRef padding);

void check_depthwise_conv_weight_grad(const at::Tensor& grad, const at::Tensor& x,
                                      const AnySizes& kernel_size, at::IntArrayRef stride,
                                      at::IntArrayRef padding);

}  // namespace metasparse
