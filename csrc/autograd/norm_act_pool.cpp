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
#include "../dense/norm_act_pool.h"

#include <ATen/ATen.h>

#include <array>

#include "node.h"

namespace metasparse {
namespace {

using at::Tensor;
using dense::NormDirection;
using dense::NormPoint;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
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

const auto& forward_op() {
  static const auto op = find_op<ForwardSignature>("metasparse::norm_act_pool");
  return op;
}
const auto& backward_op() {
  static const auto op = find_op<BackwardSignature>("metasparse::norm_act_pool_backward");
  return op;
}
const auto& tangent_op() {
  static const auto op = find_op<TangentSignature>("metasparse::norm_act_pool_tangent");
  return op;
}
const auto& double_backward_op() {
  static const auto op =
      find_op<DoubleBackwardSignature>("metasparse::norm_act_pool_double_backward");
  return op;
}

// ---- the family at a point ---------------------------------------------------------------------

// A point with what the forward pass saved of it.
struct Point {
  Tensor x, weight, mean, rstd, gate;
  double eps;
  bool pool, norm_first;

  Point primal() const {
    return {primal_of(x), primal_of(weight), mean, rstd, gate, eps, pool, norm_first};
  }

  Tensor x_direction(const Tensor& v) const { return v.defined() ? v : at::zeros_like(x); }

  Tensor tangent(const NormDirection& v) const {
    return tangent_op().call(x_direction(v.x), or_none(v.weight), or_none(v.bias), x,
                             or_none(weight), mean, rstd, gate, eps, pool, norm_first);
  }

  NormDirection backward(const Tensor& grad) const {
    const auto [gx, gw, gb] =
        backward_op().call(grad, x, or_none(weight), mean, rstd, gate, eps, pool, norm_first);
    return {gx, gw, gb};
  }

  // f'[v] and H(v; grad).
  std::tuple<Tensor, NormDirection> double_backward(const NormDirection& v,
                                                    const Tensor& grad) const {
    const auto [y_dot, gx, gw] =
        double_backward_op().call(x_direction(v.x), or_none(v.weight), or_none(v.bias), grad, x,
                                  or_none(weight), mean, rstd, gate, eps, pool, norm_first);
    return {y_dot, {gx, gw, Tensor()}};
  }

  NormDirection hessian(const NormDirection& v, const Tensor& grad) const {
    return std::get<1>(double_backward(v, grad));
  }

  Tensor second(const NormDirection& v, const NormDirection& c) const {
    return dense::norm_act_pool_second(definition(), whole(v), whole(c));
  }

  NormDirection third(const Tensor& grad, const NormDirection& v, const NormDirection& c) const {
    const auto [gx, gw] = dense::norm_act_pool_third(definition(), grad, whole(v), whole(c));
    return {gx, gw, Tensor()};
  }

 private:
  NormPoint definition() const { return {x, weight, gate, eps, pool, norm_first}; }
  NormDirection whole(const NormDirection& v) const { return {x_direction(v.x), v.weight, v.bias}; }
};

NormDirection operator+(const NormDirection& a, const NormDirection& b) {
  return {add_defined(a.x, b.x), add_defined(a.weight, b.weight), add_defined(a.bias, b.bias)};
}

bool any_defined(const NormDirection& v) {
  return v.x.defined() || v.weight.defined() || v.bias.defined();
}

NormDirection tangents_of(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  return {tangent_of(x), tangent_of(weight), tangent_of(bias)};
}

NormDirection primals_of(const NormDirection& v) {
  return {primal_of(v.x), primal_of(v.weight), primal_of(v.bias)};
}

struct SavedPoint {
  SavedVariable x, weight, mean, rstd, gate;
  double eps;
  bool pool, norm_first;

  void save(const Point& p) {
    x = SavedVariable(p.x, /*is_output=*/false);
    weight = SavedVariable(p.weight, false);
    mean = SavedVariable(p.mean, false);
    rstd = SavedVariable(p.rstd, false);
    gate = SavedVariable(p.gate, false);
    eps = p.eps;
    pool = p.pool;
    norm_first = p.norm_first;
  }
  Point unpack() const {
    return {x.unpack(), weight.unpack(), mean.unpack(), rstd.unpack(), gate.unpack(), eps,
            pool,       norm_first};
  }
  void reset() {
    for (SavedVariable* variable : {&x, &weight, &mean, &rstd, &gate}) variable->reset_data();
  }
};

struct SavedDirection {
  SavedVariable x, weight, bias;

  void save(const NormDirection& v) {
    x = SavedVariable(v.x, false);
    weight = SavedVariable(v.weight, false);
    bias = SavedVariable(v.bias, false);
  }
  NormDirection unpack() const { return {x.unpack(), weight.unpack(), bias.unpack()}; }
  void reset() {
    for (SavedVariable* variable : {&x, &weight, &bias}) variable->reset_data();
  }
};

// ---- Nodes -------------------------------------------------------------------------------------

struct NormActPoolBackward : Node {
  SavedPoint point;

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!grads[0].defined()) return variable_list(3);
    const auto v = point.unpack().backward(grads[0]);
    return {v.x, v.weight, v.bias};
  }
  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    point.reset();
  }
  std::string name() const override { return "NormActPoolBackward"; }
};

// Of (x_dot, weight_dot, bias_dot, x, weight) -> f'[v].
struct NormActPoolTangentBackward : Node {
  SavedPoint point;
  SavedDirection direction;

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list out(5);
    if (!grads[0].defined()) return out;
    const Point p = point.unpack();
    if (task_should_compute_output(0) || task_should_compute_output(1) ||
        task_should_compute_output(2)) {
      const auto v = p.backward(grads[0]);
      out[0] = v.x, out[1] = v.weight, out[2] = v.bias;
    }
    if (task_should_compute_output(3) || task_should_compute_output(4)) {
      const auto h = p.hessian(direction.unpack(), grads[0]);
      out[3] = h.x, out[4] = h.weight;
    }
    return out;
  }
  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    point.reset();
    direction.reset();
  }
  std::string name() const override { return "NormActPoolTangentBackward"; }
};

// Of (grad, x, weight) -> B(grad).
struct NormActPoolBackwardBackward : Node {
  SavedPoint point;
  SavedVariable grad;

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const NormDirection v{grads[0], grads[1], grads[2]};
    if (!any_defined(v)) return variable_list(3);
    const auto [y_dot, h] = point.unpack().double_backward(v, grad.unpack());
    return {y_dot, h.x, h.weight};
  }
  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    point.reset();
    grad.reset_data();
  }
  std::string name() const override { return "NormActPoolBackwardBackward"; }
};

// Of (x_dot, weight_dot, bias_dot, grad, x, weight) -> (f'[v], H(v; grad)).
struct NormActPoolDoubleBackwardBackward : Node {
  SavedPoint point;
  SavedDirection direction;
  SavedVariable grad;

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Tensor& a = grads[0];
    const NormDirection c{grads[1], grads[2], Tensor()};
    const Point p = point.unpack();
    const auto v = direction.unpack();
    const auto g = grad.unpack();
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
  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    point.reset();
    direction.reset();
    grad.reset_data();
  }
  std::string name() const override { return "NormActPoolDoubleBackwardBackward"; }
};

template <class N>
using PointerTo = decltype(make_node<N>());

// A Node with edges to the variables, or none where no gradient is asked for.
template <class N, class... Variables>
PointerTo<N> node_of(const Variables&... variables) {
  if (!torch::autograd::compute_requires_grad(variables...)) return {};
  auto node = make_node<N>();
  node->set_next_edges(torch::autograd::collect_next_edges(variables...));
  return node;
}

void set_tangent(const Tensor& out, const Tensor& dot) {
  if (dot.defined()) out._set_fw_grad(dot, /*level=*/0, /*is_inplace_op=*/false);
}

// ---- kernels of the autograd key ---------------------------------------------------------------

std::tuple<Tensor, Tensor, Tensor, Tensor> norm_act_pool(c10::DispatchKeySet keys, const Tensor& x,
                                                         const OptionalTensor& weight_,
                                                         const OptionalTensor& bias_, double eps,
                                                         bool relu, bool pool, bool norm_first) {
  const Tensor weight = or_undefined(weight_), bias = or_undefined(bias_);
  const auto node = node_of<NormActPoolBackward>(x, weight, bias);
  auto [y, mean, rstd, gate] = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return forward_op().redispatch(keys & c10::after_autograd_keyset, x, weight_, bias_, eps, relu,
                                   pool, norm_first);
  }();
  const Point point{x, weight, mean, rstd, gate, eps, pool, norm_first};
  if (node) {
    node->point.save(point);
    torch::autograd::set_history(y, node);
  }
  const auto dot = tangents_of(x, weight, bias);
  if (any_defined(dot)) set_tangent(y, point.primal().tangent(dot));
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
  auto [gx, gw, gb] = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return backward_op().redispatch(keys & c10::after_autograd_keyset, grad, x, weight_, mean, rstd,
                                    gate, eps, pool, norm_first);
  }();
  if (node) {
    node->point.save(point);
    node->grad = SavedVariable(grad, false);
    torch::autograd::set_history({gx, gw, gb}, node);
  }
  const Tensor grad_dot = tangent_of(grad);
  const auto dot = tangents_of(x, weight, Tensor());
  NormDirection sum;
  if (grad_dot.defined()) sum = point.primal().backward(grad_dot);
  if (any_defined(dot)) sum = sum + point.primal().hessian(dot, primal_of(grad));
  set_tangent(gx, sum.x);
  set_tangent(gw, sum.weight);
  set_tangent(gb, sum.bias);
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
  auto out = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return tangent_op().redispatch(keys & c10::after_autograd_keyset, x_dot, weight_dot, bias_dot,
                                   x, weight_, mean, rstd, gate, eps, pool, norm_first);
  }();
  if (node) {
    node->point.save(point);
    node->direction.save(v);
    torch::autograd::set_history(out, node);
  }
  const auto v_dot = tangents_of(v.x, v.weight, v.bias), dot = tangents_of(x, weight, Tensor());
  Tensor sum;
  if (any_defined(v_dot)) sum = point.primal().tangent(v_dot);
  if (any_defined(dot)) sum = add_defined(sum, point.primal().second(primals_of(v), dot));
  set_tangent(out, sum);
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
  auto [y_dot, gx, gw] = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return double_backward_op().redispatch(keys & c10::after_autograd_keyset, x_dot, weight_dot,
                                           bias_dot, grad, x, weight_, mean, rstd, gate, eps, pool,
                                           norm_first);
  }();
  if (node) {
    node->point.save(point);
    node->direction.save(v);
    node->grad = SavedVariable(grad, false);
    torch::autograd::set_history({y_dot, gx, gw}, node);
  }
  const auto v_dot = tangents_of(v.x, v.weight, v.bias), dot = tangents_of(x, weight, Tensor());
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
  set_tangent(y_dot, y_sum);
  set_tangent(gx, sum.x);
  set_tangent(gw, sum.weight);
  return {y_dot, gx, gw};
}

}  // namespace
}  // namespace metasparse

TORCH_LIBRARY_IMPL(metasparse, Autograd, m) {
  m.impl("norm_act_pool", metasparse::norm_act_pool);
  m.impl("norm_act_pool_backward", metasparse::norm_act_pool_backward);
  m.impl("norm_act_pool_tangent", metasparse::norm_act_pool_tangent);
  m.impl("norm_act_pool_double_backward", metasparse::norm_act_pool_double_backward);
}
