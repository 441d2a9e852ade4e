// The norm_act_pool family at a point, and its forward mode: norm_act_pool.h.
#include "norm_act_pool.h"

namespace metasparse::norm_autograd {

// ---- the family at a point ----------------------------------------------------------------------

Point Point::primal() const {
  return {primal_of(x), primal_of(weight), mean, rstd, gate, eps, pool, norm_first};
}

Tensor Point::tangent(const NormDirection& v) const {
  return tangent_op().call(x_direction(v.x), or_none(v.weight), or_none(v.bias), x, or_none(weight),
                           mean, rstd, gate, eps, pool, norm_first);
}

NormDirection Point::backward(const Tensor& grad) const {
  const auto [gx, gw, gb] =
      backward_op().call(grad, x, or_none(weight), mean, rstd, gate, eps, pool, norm_first);
  return {gx, gw, gb};
}

std::tuple<Tensor, NormDirection> Point::double_backward(const NormDirection& v,
                                                         const Tensor& grad) const {
  const auto [y_dot, gx, gw] =
      double_backward_op().call(x_direction(v.x), or_none(v.weight), or_none(v.bias), grad, x,
                                or_none(weight), mean, rstd, gate, eps, pool, norm_first);
  return {y_dot, {gx, gw, Tensor()}};
}

NormDirection Point::hessian(const NormDirection& v, const Tensor& grad) const {
  return std::get<1>(double_backward(v, grad));
}

Tensor Point::second(const NormDirection& v, const NormDirection& c) const {
  return dense::norm_act_pool_second(definition(), whole(v), whole(c));
}

NormDirection Point::third(const Tensor& grad, const NormDirection& v,
                           const NormDirection& c) const {
  const auto [gx, gw] = dense::norm_act_pool_third(definition(), grad, whole(v), whole(c));
  return {gx, gw, Tensor()};
}

Tensor Point::x_direction(const Tensor& v) const { return v.defined() ? v : at::zeros_like(x); }

dense::NormPoint Point::definition() const { return {x, weight, gate, eps, pool, norm_first}; }

NormDirection Point::whole(const NormDirection& v) const {
  return {x_direction(v.x), v.weight, v.bias};
}

NormDirection operator+(const NormDirection& a, const NormDirection& b) {
  return {add_defined(a.x, b.x), add_defined(a.weight, b.weight), add_defined(a.bias, b.bias)};
}

bool any_defined(const NormDirection& v) {
  return v.x.defined() || v.weight.defined() || v.bias.defined();
}

NormDirection tangents_of(const NormDirection& v) {
  return {tangent_of(v.x), tangent_of(v.weight), tangent_of(v.bias)};
}

NormDirection primals_of(const NormDirection& v) {
  return {primal_of(v.x), primal_of(v.weight), primal_of(v.bias)};
}

void NormActPoolNode::save_point(const Point& p) {
  save({p.x, p.weight, p.mean, p.rstd, p.gate});
  eps_ = p.eps;
  pool_ = p.pool;
  norm_first_ = p.norm_first;
}

Point NormActPoolNode::point() const {
  return {value(0), value(1), value(2), value(3), value(4), eps_, pool_, norm_first_};
}

NormDirection NormActPoolNode::direction() const { return {value(5), value(6), value(7)}; }

// ---- forward mode -------------------------------------------------------------------------------

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
  if (!any_defined(dot) && !any_defined(v_dot) && !grad_dot.defined()) return {};
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
