#pragma once
// The masked convolution family by PyTorch's own convolution on the premultiplied weight: any
// device and dtype, no kernel skipped. The CPU's choice where no sparse kernel wins, and as
// metasparse_dense::* one of the backends that metasparse_ext/ops/cuda.py chooses from.
#include <ATen/core/Tensor.h>

#include <optional>

namespace metasparse::dense {

using at::IntArrayRef;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

Tensor masked_conv(const Tensor& x, const Tensor& weight, const OptionalTensor& mask,
                   const OptionalTensor& bias, IntArrayRef stride, IntArrayRef padding);

Tensor masked_conv_input_grad(const Tensor& grad, const Tensor& weight, const OptionalTensor& mask,
                              IntArrayRef input_size, IntArrayRef stride, IntArrayRef padding);

Tensor masked_conv_weight_grad(const Tensor& grad, const Tensor& x, const OptionalTensor& mask,
                               IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding);

Tensor masked_conv_mask_grad(const Tensor& grad, const Tensor& x, const Tensor& weight,
                             IntArrayRef stride, IntArrayRef padding);

}  // namespace metasparse::dense
