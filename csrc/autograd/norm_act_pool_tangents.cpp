#include "norm_act_pool_tangents.h"

namespace metasparse::norm_autograd {
namespace {

NormDirection tangents_of(const Point& point) {
  return {tangent_of(point.x), tangent_of(point.weight), Tensor()};
}

}  // namespace

Tensor tangent_of_block(const Point& point, const Tensor& bias) {
  auto dot = tangents_of(point);
  dot.bias = tangent_of(bias);
  return any_defined(dot) ? point.primal().tangent(dot) : Tensor();
}

NormDirection tangent_of_backward(const Point& point, const Tensor& grad) {
  const auto dot = tangents_of(point);
  const Tensor grad_dot = tangent_of(grad);
  NormDirection sum;
  if (grad_dot.defined()) sum = point.primal().backward(grad_dot);
  if (any_defined(dot)) sum = sum + point.primal().hessian(dot, primal_of(grad));
  return sum;
}

Tensor tangent_of_tangent(const Point& point, const NormDirection& v) {
  const auto dot = tangents_of(point), v_dot = tangents_of(v);
  Tensor sum;
  if (any_defined(v_dot)) sum = point.primal().tangent(v_dot);
  if (any_defined(dot)) sum = add_defined(sum, point.primal().second(primals_of(v), dot));
  return sum;
}

std::tuple<Tensor, NormDirection> tangent_of_double_backward(const Point& point,
                                                             const NormDirection& v,
                                                             const Tensor& grad) {
  const auto dot = tangents_of(point), v_dot = tangents_of(v);
  const Tensor grad_dot = tangent_of(grad);
  const Point p = point.primal();
  const auto v_primal = primals_of(v);
  const auto grad_primal = primal_of(grad);
  Tensor y_sum;
  NormDirection sum;
  if (any_defined(v_dot)) std::tie(y_sum, sum) = p.double_backward(v_dot, grad_primal);
  if (grad_dot.defined()) sum = sum + p.hessian(v_primal, grad_dot);
  if (any_defined(dot)) {
    y_sum = add_defined(y_sum, p.second(v_primal, dot));
    sum = sum + p.third(grad_primal, v_primal, dot);
  }
  return {y_sum, sum};
}

}  // namespace metasparse::norm_autograd
