#pragma once
// The norm_act_pool family in ATen's own operators: any device and dtype, and differentiable, which
// gives the derivatives above the second. csrc/autograd/norm_act_pool.cpp states the mathematics.
#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace metasparse::dense {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// A direction in the space of (x, weight, bias); what is undefined is zero.
struct NormDirection {
  Tensor x, weight, bias;
};

// Where derivatives are taken: x, weight (undefined: 1), and the gate that the forward pass chose.
struct NormPoint {
  Tensor x, weight, gate;
  double eps;
  bool pool, norm_first;
};

// f''[v, c], of the size of the result.
Tensor norm_act_pool_second(const NormPoint& point, const NormDirection& v, const NormDirection& c);

// The gradients of <grad, f''[v, c]> in x and in weight.
std::tuple<Tensor, Tensor> norm_act_pool_third(const NormPoint& point, const Tensor& grad,
                                               const NormDirection& v, const NormDirection& c);

}  // namespace metasparse::dense
