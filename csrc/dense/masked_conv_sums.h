#pragma once
// The members of the masked convolution family that are made of others, on any device.
#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "masked_conv.h"

namespace metasparse::dense {

Tensor masked_conv_pair(const Tensor& x1, const Tensor& weight1, const OptionalTensor& mask1,
                        const Tensor& x2, const Tensor& weight2, const OptionalTensor& mask2,
                        const OptionalTensor& bias, IntArrayRef stride, IntArrayRef padding);

Tensor masked_conv_input_grad_pair(const Tensor& grad1, const Tensor& weight1,
                                   const OptionalTensor& mask1, const Tensor& grad2,
                                   const Tensor& weight2, const OptionalTensor& mask2,
                                   IntArrayRef input_size, IntArrayRef stride, IntArrayRef padding);

Tensor masked_conv_weight_grad_pair(const Tensor& grad1, const Tensor& x1, const Tensor& grad2,
                                    const Tensor& x2, const OptionalTensor& mask,
                                    IntArrayRef kernel_size, IntArrayRef stride,
                                    IntArrayRef padding);

std::tuple<Tensor, Tensor, Tensor> masked_conv_backward(
    const Tensor& grad, const Tensor& x, const Tensor& weight, const OptionalTensor& mask,
    bool input_wanted, bool dense, bool bias_wanted, IntArrayRef stride, IntArrayRef padding);

}  // namespace metasparse::dense
