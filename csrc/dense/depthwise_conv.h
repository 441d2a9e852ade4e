#pragma once
// Depthwise convolutions with a task axis by ATen's own: any device and dtype.
#include <ATen/core/Tensor.h>

namespace metasparse::dense {

at::Tensor depthwise_conv(const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef stride,
                          at::IntArrayRef padding);

at::Tensor depthwise_conv_input_grad(const at::Tensor& grad, const at::Tensor& weight,
                                     at::IntArrayRef input_size, at::IntArrayRef stride,
                                     at::IntArrayRef padding);

at::Tensor depthwise_conv_weight_grad(const at::Tensor& grad, const at::Tensor& x,
                                      at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                      at::IntArrayRef padding);

}  // namespace metasparse::dense
