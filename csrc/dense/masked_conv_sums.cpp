// The members of the masked convolution family that are made of others: sums of two, and a whole
// backward pass. Composed of ops, so each part takes the fastest way that its device has.
#include "masked_conv_sums.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "../checks/masked_conv.h"
#include "../find_op.h"

namespace metasparse::dense {
namespace {

using ConvSignature = Tensor(const Tensor&, const Tensor&, const OptionalTensor&,
                             const OptionalTensor&, IntArrayRef, IntArrayRef);
using PartialSignature = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, IntArrayRef,
                                IntArrayRef, IntArrayRef);

Tensor forward(const Tensor& x, const Tensor& weight, const OptionalTensor& mask,
               const OptionalTensor& bias, IntArrayRef stride, IntArrayRef padding) {
  static const auto op = find_op<ConvSignature>("metasparse::masked_conv");
  return op.call(x, weight, mask, bias, stride, padding);
}

Tensor input_grad(const Tensor& grad, const Tensor& weight, const OptionalTensor& mask,
                  IntArrayRef input_size, IntArrayRef stride, IntArrayRef padding) {
  static const auto op = find_op<PartialSignature>("metasparse::masked_conv_input_grad");
  return op.call(grad, weight, mask, input_size, stride, padding);
}

Tensor weight_grad(const Tensor& grad, const Tensor& x, const OptionalTensor& mask,
                   IntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding) {
  static const auto op = find_op<PartialSignature>("metasparse::masked_conv_weight_grad");
  return op.call(grad, x, mask, kernel_size, stride, padding);
}

}  // namespace

Tensor masked_conv_pair(const Tensor& x1, const Tensor& weight1, const OptionalTensor& mask1,
                        const Tensor& x2, const Tensor& weight2, const OptionalTensor& mask2,
                        const OptionalTensor& bias, IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv_pair(x1, weight1, mask1, x2, weight2, mask2, bias, stride, padding);
  return forward(x1, weight1, mask1, bias, stride, padding)
      .add_(forward(x2, weight2, mask2, std::nullopt, stride, padding));
}

Tensor masked_conv_input_grad_pair(const Tensor& grad1, const Tensor& weight1,
                                   const OptionalTensor& mask1, const Tensor& grad2,
                                   const Tensor& weight2, const OptionalTensor& mask2,
                                   IntArrayRef input_size, IntArrayRef stride,
                                   IntArrayRef padding) {
  check_masked_conv_input_grad_pair(grad1, weight1, mask1, grad2, weight2, mask2, input_size,
                                    stride, padding);
  return input_grad(grad1, weight1, mask1, input_size, stride, padding)
      .add_(input_grad(grad2, weight2, mask2, input_size, stride, padding));
}

Tensor masked_conv_weight_grad_pair(const Tensor& grad1, const Tensor& x1, const Tensor& grad2,
                                    const Tensor& x2, const OptionalTensor& mask,
                                    IntArrayRef kernel_size, IntArrayRef stride,
                                    IntArrayRef padding) {
  check_masked_conv_weight_grad_pair(grad1, x1, grad2, x2, mask, kernel_size, stride, padding);
  return weight_grad(grad1, x1, mask, kernel_size, stride, padding)
      .add_(weight_grad(grad2, x2, mask, kernel_size, stride, padding));
}

std::tuple<Tensor, Tensor, Tensor> masked_conv_backward(
    const Tensor& grad, const Tensor& x, const Tensor& weight, const OptionalTensor& mask,
    bool input_wanted, bool dense, bool bias_wanted, IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv_backward(grad, x, weight, mask, stride, padding);
  const auto unwanted = [&] { return at::empty({x.size(0), 0}, x.options()); };
  return {
      input_wanted ? input_grad(grad, weight, mask, x.sizes().slice(3), stride, padding)
                   : unwanted(),
      weight_grad(grad, x, dense ? std::nullopt : mask, weight.sizes().slice(3), stride, padding),
      bias_wanted ? grad.sum({1, 3, 4}) : unwanted()};
}

}  // namespace metasparse::dense

// On CUDA a sum may also be one kernel: this is one of the ways that metasparse_ext/ops/cuda.py
// chooses from. Nothing does a whole backward pass at once.
TORCH_LIBRARY_FRAGMENT(metasparse_dense, m) {
  m.def("masked_conv_pair", metasparse::dense::masked_conv_pair);
  m.def("masked_conv_input_grad_pair", metasparse::dense::masked_conv_input_grad_pair);
  m.def("masked_conv_weight_grad_pair", metasparse::dense::masked_conv_weight_grad_pair);
}

// On every device but the CPU.
TORCH_LIBRARY_IMPL(metasparse, CompositeExplicitAutograd, m) {
  m.impl("masked_conv_backward", metasparse::dense::masked_conv_backward);
}
