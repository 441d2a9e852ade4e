#pragma once
// The ops of the masked convolution family, called through the dispatcher.
#include <ATen/ATen.h>

#include <optional>
#include <tuple>

#include "../find_op.h"

namespace metasparse::conv_autograd {

using at::IntArrayRef;
using at::Tensor;
using c10::SymIntArrayRef;
using OptionalTensor = std::optional<Tensor>;

using ConvSignature = Tensor(const Tensor&, const Tensor&, const OptionalTensor&,
                             const OptionalTensor&, IntArrayRef, IntArrayRef);
using PartialSignature = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, SymIntArrayRef,
                                IntArrayRef, IntArrayRef);
using MaskGradSignature = Tensor(const Tensor&, const Tensor&, const Tensor&, IntArrayRef,
                                 IntArrayRef);
using ConvPairSignature = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, const Tensor&,
                                 const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                 IntArrayRef, IntArrayRef);
using InputGradPairSignature = Tensor(const Tensor&, const Tensor&, const OptionalTensor&,
                                      const Tensor&, const Tensor&, const OptionalTensor&,
                                      SymIntArrayRef, IntArrayRef, IntArrayRef);
using WeightGradPairSignature = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                       const OptionalTensor&, SymIntArrayRef, IntArrayRef,
                                       IntArrayRef);
using BackwardResult = std::tuple<Tensor, Tensor, Tensor>;
using BackwardSignature = BackwardResult(const Tensor&, const Tensor&, const Tensor&,
                                         const OptionalTensor&, bool, bool, bool, IntArrayRef,
                                         IntArrayRef);

inline const auto& conv_op() {
  static const auto op = find_op<ConvSignature>("metasparse::masked_conv");
  return op;
}
inline const auto& input_grad_op() {
  static const auto op = find_op<PartialSignature>("metasparse::masked_conv_input_grad");
  return op;
}
inline const auto& weight_grad_op() {
  static const auto op = find_op<PartialSignature>("metasparse::masked_conv_weight_grad");
  return op;
}
inline const auto& mask_grad_op() {
  static const auto op = find_op<MaskGradSignature>("metasparse::masked_conv_mask_grad");
  return op;
}
inline const auto& conv_pair_op() {
  static const auto op = find_op<ConvPairSignature>("metasparse::masked_conv_pair");
  return op;
}
inline const auto& input_grad_pair_op() {
  static const auto op = find_op<InputGradPairSignature>("metasparse::masked_conv_input_grad_pair");
  return op;
}
inline const auto& weight_grad_pair_op() {
  static const auto op =
      find_op<WeightGradPairSignature>("metasparse::masked_conv_weight_grad_pair");
  return op;
}
inline const auto& backward_op() {
  static const auto op = find_op<BackwardSignature>("metasparse::masked_conv_backward");
  return op;
}

}  // namespace metasparse::conv_autograd
