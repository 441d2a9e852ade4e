#pragma once
// The ops of the norm_act_pool family, called through the dispatcher.
#include <ATen/ATen.h>

#include <optional>
#include <tuple>

#include "../find_op.h"

namespace metasparse::norm_autograd {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

using ForwardSignature = std::tuple<Tensor, Tensor, Tensor, Tensor>(const Tensor&,
                                                                    const OptionalTensor&,
                                                                    const OptionalTensor&, double,
                                                                    bool, bool, bool);
using BackwardSignature = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&,
                                                             const OptionalTensor&, const Tensor&,
                                                             const Tensor&, const Tensor&, double,
                                                             bool, bool);
using TangentSignature = Tensor(const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                const Tensor&, const OptionalTensor&, const Tensor&, const Tensor&,
                                const Tensor&, double, bool, bool);
using DoubleBackwardSignature = std::tuple<Tensor, Tensor, Tensor>(
    const Tensor&, const OptionalTensor&, const OptionalTensor&, const Tensor&, const Tensor&,
    const OptionalTensor&, const Tensor&, const Tensor&, const Tensor&, double, bool, bool);

inline const auto& forward_op() {
  static const auto op = find_op<ForwardSignature>("metasparse::norm_act_pool");
  return op;
}
inline const auto& backward_op() {
  static const auto op = find_op<BackwardSignature>("metasparse::norm_act_pool_backward");
  return op;
}
inline const auto& tangent_op() {
  static const auto op = find_op<TangentSignature>("metasparse::norm_act_pool_tangent");
  return op;
}
inline const auto& double_backward_op() {
  static const auto op =
      find_op<DoubleBackwardSignature>("metasparse::norm_act_pool_double_backward");
  return op;
}

}  // namespace metasparse::norm_autograd
