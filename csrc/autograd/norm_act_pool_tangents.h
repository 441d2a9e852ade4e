#pragma once
// Forward mode of the norm_act_pool family: the tangents of each op's outputs, from those of its
// arguments; undefined where none has one.
#include <tuple>

#include "norm_act_pool_point.h"

namespace metasparse::norm_autograd {

// Of y.
Tensor tangent_of_block(const Point& point, const Tensor& bias);

// Of B(grad).
NormDirection tangent_of_backward(const Point& point, const Tensor& grad);

// Of f'[v].
Tensor tangent_of_tangent(const Point& point, const NormDirection& v);

// Of f'[v] and H(v; grad).
std::tuple<Tensor, NormDirection> tangent_of_double_backward(const Point& point,
                                                             const NormDirection& v,
                                                             const Tensor& grad);

}  // namespace metasparse::norm_autograd
