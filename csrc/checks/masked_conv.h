#pragma once
// Arguments of the masked convolution family, checked once for every device.
#include <ATen/core/Tensor.h>

#include <optional>

#include "window.h"

namespace metasparse {

void check_masked_conv(const at::Tensor& x, const at::Tensor& weight,
                       const std::optional<at::Tensor>& mask, const std::optional<at::Tensor>& bias,
                       at::IntArrayRef stride, at::IntArrayRef padding);

void check_masked_conv_input_grad(const at::Tensor& grad, const at::Tensor& weight,
                                  const std::optional<at::Tensor>& mask, const AnySizes& input_size,
                                  at::IntArrayRef stride, at::IntArrayRef padding);

void check_masked_conv_weight_grad(const at::Tensor& grad, const at::Tensor& x,
                                   const std::optional<at::Tensor>& mask,
                                   const AnySizes& kernel_size, at::IntArrayRef stride,
                                   at::IntArrayRef padding);

void check_masked_conv_mask_grad(const at::Tensor& grad, const at::Tensor& x,
                                 const at::Tensor& weight, at::IntArrayRef stride,
                                 at::IntArrayRef padding);

void check_masked_conv_pair(const at::Tensor& x1, const at::Tensor& weight1,
                            const std::optional<at::Tensor>& mask1, const at::Tensor& x2,
                            const at::Tensor& weight2, const std::optional<at::Tensor>& mask2,
                            const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                            at::IntArrayRef padding);

void check_masked_conv_input_grad_pair(const at::Tensor& grad1, const at::Tensor& weight1,
                                       const std::optional<at::Tensor>& mask1,
                                       const at::Tensor& grad2, const at::Tensor& weight2,
                                       const std::optional<at::Tensor>& mask2,
                                       const AnySizes& input_size, at::IntArrayRef stride,
                                       at::IntArrayRef padding);

void check_masked_conv_weight_grad_pair(const at::Tensor& grad1, const at::Tensor& x1,
                                        const at::Tensor& grad2, const at::Tensor& x2,
                                        const std::optional<at::Tensor>& mask,
                                        const AnySizes& kernel_size, at::IntArrayRef stride,
                                        at::IntArrayRef padding);

void check_masked_conv_backward(const at::Tensor& grad, const at::Tensor& x,
                                const at::Tensor& weight, const std::optional<at::Tensor>& mask,
                                at::IntArrayRef stride, at::IntArrayRef padding);

}  // namespace metasparse
