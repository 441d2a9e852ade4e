// Autograd of the block after a convolution: batch norm, activation, max-pool.
//
// Which elements pass activation and pooling is piecewise constant, so in every derivative the gate
// is a fixed matrix G of zeros and ones, and all there is to differentiate is batch norm. Per task
// and channel, over its P values, with xhat = (x - mean) rstd, a function of x alone (mean and rstd
// are not variables but what the forward pass saved of it):
//
//     f = G (w xhat + b)   (norm first)      or      f = w xhat(G x) + b   (gate first).
//
// The derivatives of xhat in the directions v, c, h are
//
//     X(v)       = rstd (v - mean(v) - xhat q(v)),                         q(v)    = mean(v xhat),
//     X(v, c)    = -rstd (q(c) X(v) + q(v) X(c) + s(v, c) xhat),           s(v, c) = mean(v X(c)),
//     X(h, v, c) = rstd^2 (q(h) s(v, c) + q(v) s(h, c) + q(c) s(h, v)) xhat
//                  - rstd (s(v, c) X(h) + s(h, c) X(v) + s(h, v) X(c)
//                          + q(h) X(v, c) + q(v) X(h, c) + q(c) X(h, v)),
//
// symmetric in all directions, and the gradient of <h, X(v, ...)> in x is X(h, v, ...): a gradient
// is a tangent with its gradient as one more direction. Hence, written for norm first with h = G'g,
//
//     tangent          f'[v]    = G (w X(vx) + vw xhat + vb)
//     backward         B(g)     = (w X(h),  sum h xhat,  sum h)                     in x, w, b
//     double_backward  f'[v] and H(v; g) = (w X(h, vx) + vw X(h),  sum h X(vx))     in x, w
//
// where H(v; g) is both the gradient of <f'[v], g> and the tangent of B(g). These three ops and the
// block itself are closed under differentiation but for f''[v, c] and the gradient of <f''[v, c],
// g>, the third derivatives, which are composed of differentiable operators in csrc/dense.
#include "norm_act_pool.h"

namespace metasparse::norm_autograd {

variable_list NormActPoolBackward::gradients(const variable_list& grads) {
  if (!grads[0].defined()) return variable_list(3);
  const auto v = point().backward(grads[0]);
  return {v.x, v.weight, v.bias};
}

variable_list NormActPoolTangentBackward::gradients(const variable_list& grads) {
  variable_list out(5);
  if (!grads[0].defined()) return out;
  const Point p = point();
  if (task_should_compute_output(0) || task_should_compute_output(1) ||
      task_should_compute_output(2)) {
    const auto v = p.backward(grads[0]);
    out[0] = v.x, out[1] = v.weight, out[2] = v.bias;
  }
  if (task_should_compute_output(3) || task_should_compute_output(4)) {
    const auto h = p.hessian(direction(), grads[0]);
    out[3] = h.x, out[4] = h.weight;
  }
  return out;
}

variable_list NormActPoolBackwardBackward::gradients(const variable_list& grads) {
  const NormDirection v{grads[0], grads[1], grads[2]};
  if (!any_defined(v)) return variable_list(3);
  const auto [y_dot, h] = point().double_backward(v, last());
  return {y_dot, h.x, h.weight};
}

variable_list NormActPoolDoubleBackwardBackward::gradients(const variable_list& grads) {
  const Tensor& a = grads[0];
  const NormDirection c{grads[1], grads[2], Tensor()};
  const Point p = point();
  const auto v = direction();
  const auto g = last();
  NormDirection in_v, in_point;
  Tensor in_grad;
  if (a.defined()) {
    in_v = p.backward(a);
    in_point = p.hessian(v, a);
  }
  if (any_defined(c)) {
    in_v = in_v + p.hessian(c, g);
    in_point = in_point + p.third(g, v, c);
    in_grad = p.second(v, c);
  }
  return {in_v.x, in_v.weight, in_v.bias, in_grad, in_point.x, in_point.weight};
}

// ---- the ops with a gradient --------------------------------------------------------------------

namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> norm_act_pool(c10::DispatchKeySet keys, const Tensor& x,
                                                         const OptionalTensor& weight_,
                                                         const OptionalTensor& bias_, double eps,
                                                         bool relu, bool pool, bool norm_first) {
  const Tensor weight = or_undefined(weight_), bias = or_undefined(bias_);
  const auto node = node_of<NormActPoolBackward>(x, weight, bias);
  auto [y, mean, rstd, gate] = run_below_autograd([&] {
    return forward_op().redispatch(below_autograd(keys), x, weight_, bias_, eps, relu, pool,
                                   norm_first);
  });
  const Point point{x, weight, mean, rstd, gate, eps, pool, norm_first};
  if (node) {
    node->save_point(point);
    torch::autograd::set_history(y, node);
  }
  set_tangent(y, tangent_of_block(point, bias));
  return {y, mean, rstd, gate};
}

std::tuple<Tensor, Tensor, Tensor> norm_act_pool_backward(c10::DispatchKeySet keys,
                                                          const Tensor& grad, const Tensor& x,
                                                          const OptionalTensor& weight_,
                                                          const Tensor& mean, const Tensor& rstd,
                                                          const Tensor& gate, double eps, bool pool,
                                                          bool norm_first) {
  const Tensor weight = or_undefined(weight_);
  const Point point{x, weight, mean, rstd, gate, eps, pool, norm_first};
  const auto node = node_of<NormActPoolBackwardBackward>(grad, x, weight);
  auto [gx, gw, gb] = run_below_autograd([&] {
    return backward_op().redispatch(below_autograd(keys), grad, x, weight_, mean, rstd, gate, eps,
                                    pool, norm_first);
  });
  if (node) {
    node->save_point(point);
    node->save({grad});
    torch::autograd::set_history({gx, gw, gb}, node);
  }
  const auto dot = tangent_of_backward(point, grad);
  set_tangent(gx, dot.x);
  set_tangent(gw, dot.weight);
  set_tangent(gb, dot.bias);
  return {gx, gw, gb};
}

Tensor norm_act_pool_tangent(c10::DispatchKeySet keys, const Tensor& x_dot,
                             const OptionalTensor& weight_dot, const OptionalTensor& bias_dot,
                             const Tensor& x, const OptionalTensor& weight_, const Tensor& mean,
                             const Tensor& rstd, const Tensor& gate, double eps, bool pool,
                             bool norm_first) {
  const Tensor weight = or_undefined(weight_);
  const Point point{x, weight, mean, rstd, gate, eps, pool, norm_first};
  const NormDirection v{x_dot, or_undefined(weight_dot), or_undefined(bias_dot)};
  const auto node = node_of<NormActPoolTangentBackward>(v.x, v.weight, v.bias, x, weight);
  auto out = run_below_autograd([&] {
    return tangent_op().redispatch(below_autograd(keys), x_dot, weight_dot, bias_dot, x, weight_,
                                   mean, rstd, gate, eps, pool, norm_first);
  });
  if (node) {
    node->save_point(point);
    node->save({v.x, v.weight, v.bias});
    torch::autograd::set_history(out, node);
  }
  set_tangent(out, tangent_of_tangent(point, v));
  return out;
}

std::tuple<Tensor, Tensor, Tensor> norm_act_pool_double_backward(
    c10::DispatchKeySet keys, const Tensor& x_dot, const OptionalTensor& weight_dot,
    const OptionalTensor& bias_dot, const Tensor& grad, const Tensor& x,
    const OptionalTensor& weight_, const Tensor& mean, const Tensor& rstd, const Tensor& gate,
    double eps, bool pool, bool norm_first) {
  const Tensor weight = or_undefined(weight_);
  const Point point{x, weight, mean, rstd, gate, eps, pool, norm_first};
  const NormDirection v{x_dot, or_undefined(weight_dot), or_undefined(bias_dot)};
  const auto node =
      node_of<NormActPoolDoubleBackwardBackward>(v.x, v.weight, v.bias, grad, x, weight);
  auto [y_dot, gx, gw] = run_below_autograd([&] {
    return double_backward_op().redispatch(below_autograd(keys), x_dot, weight_dot, bias_dot, grad,
                                           x, weight_, mean, rstd, gate, eps, pool, norm_first);
  });
  if (node) {
    node->save_point(point);
    node->save({v.x, v.weight, v.bias});
    node->save({grad});
    torch::autograd::set_history({y_dot, gx, gw}, node);
  }
  const auto [y_dot_dot, dot] = tangent_of_double_backward(point, v, grad);
  set_tangent(y_dot, y_dot_dot);
  set_tangent(gx, dot.x);
  set_tangent(gw, dot.weight);
  return {y_dot, gx, gw};
}

}  // namespace
}  // namespace metasparse::norm_autograd

TORCH_LIBRARY_IMPL(metasparse, Autograd, m) {
  using namespace metasparse::norm_autograd;
  m.impl("norm_act_pool", norm_act_pool);
  m.impl("norm_act_pool_backward", norm_act_pool_backward);
  m.impl("norm_act_pool_tangent", norm_act_pool_tangent);
  m.impl("norm_act_pool_double_backward", norm_act_pool_double_backward);
}
