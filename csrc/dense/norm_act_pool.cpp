#include "norm_act_pool.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "../checks/norm_act_pool.h"
#include "../norm_act_pool_gate.h"

namespace metasparse::dense {
namespace {

// ---- the gate: a fixed choice of elements, and its transpose -----------------------------------

bool is_gated(const Tensor& gate) { return gate.dim() == 5; }

Tensor keep_where(const Tensor& condition, const Tensor& t) {
  return at::where(condition, t, at::zeros({}, t.options()));
}

Tensor place_in_windows(const Tensor& t, int64_t place) {
  const auto height = t.size(3) / 2 * 2, width = t.size(4) / 2 * 2;
  return t.slice(3, place / 2, height, 2).slice(4, place % 2, width, 2);
}

Tensor gather(const Tensor& t, const Tensor& gate, bool pool) {
  if (!is_gated(gate)) return t;
  if (!pool) return keep_where(gate == 0, t);
  Tensor sum;
  for (int64_t place = 0; place < 4; ++place) {
    const auto part = keep_where(gate == place, place_in_windows(t, place));
    sum = sum.defined() ? sum + part : part;
  }
  return sum;
}

Tensor scatter(const Tensor& t, const Tensor& gate, bool pool, const Tensor& like) {
  if (!is_gated(gate)) return t;
  if (!pool) return keep_where(gate == 0, t);
  std::vector<Tensor> places;
  for (int64_t place = 0; place < 4; ++place) places.push_back(keep_where(gate == place, t));
  // (..., H', W', 4) -> (..., H', 2, W', 2) -> (..., 2 H', 2 W')
  const auto windows = at::stack(places, -1).unflatten(-1, {2, 2}).transpose(-2, -3);
  const auto even = windows.flatten(-2, -1).flatten(-3, -2);
  return at::constant_pad_nd(even, {0, like.size(4) % 2, 0, like.size(3) % 2});
}

// The values that pass activation and pooling, and which ones they are.
std::tuple<Tensor, Tensor> open_gate(const Tensor& t, bool relu, bool pool) {
  if (!relu && !pool) return {t, at::empty({t.size(0), 0}, t.options().dtype(at::kByte))};
  Tensor value = t, gate = at::zeros({}, t.options().dtype(at::kByte));
  if (pool) {
    const auto [best, index] = at::max_pool2d_with_indices(t.flatten(0, 1), {2, 2});
    const auto width = t.size(4);
    const auto row = at::div(index, width, "floor").remainder(2);
    gate = (2 * row + index.remainder(width).remainder(2)).to(at::kByte);
    gate = gate.unflatten(0, {t.size(0), t.size(1)});
    value = best.unflatten(0, {t.size(0), t.size(1)});
  }
  if (relu) {
    const auto closed = value <= 0;
    gate = at::where(closed, at::full({}, kClosed, gate.options()), gate);
    value = at::where(closed, at::zeros({}, value.options()), value);
  }
  return {value, gate.contiguous()};
}

// ---- batch norm and its directional derivatives ------------------------------------------------

Tensor mean_of(const Tensor& t) { return t.mean({1, 3, 4}, /*keepdim=*/true); }
Tensor sum_of(const Tensor& t) { return t.sum({1, 3, 4}); }

Tensor per_channel(const Tensor& t) { return t.unsqueeze(1).unsqueeze(-1).unsqueeze(-1); }

Tensor scaled(const Tensor& weight, const Tensor& t) {
  return weight.defined() ? per_channel(weight) * t : t;
}

Tensor plus_scaled(const Tensor& sum, const Tensor& weight, const Tensor& t) {
  return weight.defined() ? sum + per_channel(weight) * t : sum;
}

// xhat as a function of x, with its derivatives X. They are symmetric in all their directions, and
// the gradient of <h, X(v, ...)> in x is X(h, v, ...).
class Normalised {
 public:
  Normalised(const Tensor& x, double eps) {
    const auto [variance, average] = at::var_mean(x, {1, 3, 4}, /*correction=*/0, /*keepdim=*/true);
    mean = average;
    rstd = at::rsqrt(variance + eps);
    xhat = (x - mean) * rstd;
  }

  Tensor q(const Tensor& v) const { return mean_of(v * xhat); }
  Tensor s(const Tensor& v, const Tensor& c) const { return mean_of(v * derivative(c)); }

  Tensor derivative(const Tensor& v) const { return rstd * (v - mean_of(v) - xhat * q(v)); }

  Tensor derivative(const Tensor& v, const Tensor& c) const {
    return -rstd * (q(c) * derivative(v) + q(v) * derivative(c) + s(v, c) * xhat);
  }

  Tensor derivative(const Tensor& h, const Tensor& v, const Tensor& c) const {
    const auto e = q(h) * s(v, c) + q(v) * s(h, c) + q(c) * s(h, v);
    return rstd * rstd * e * xhat -
           rstd * (s(v, c) * derivative(h) + s(h, c) * derivative(v) + s(h, v) * derivative(c) +
                   q(h) * derivative(v, c) + q(v) * derivative(h, c) + q(c) * derivative(h, v));
  }

  Tensor mean, rstd, xhat;
};

// A point seen from the norm: what the gate lets into it and out of it.
struct NormView {
  explicit NormView(const NormPoint& p) : point(p), norm(enter(p.x), p.eps) {}

  Tensor enter(const Tensor& x) const {
    return point.norm_first ? x : gather(x, point.gate, point.pool);
  }
  Tensor leave(const Tensor& y) const {
    return point.norm_first ? gather(y, point.gate, point.pool) : y;
  }
  Tensor enter_back(const Tensor& y) const {
    return point.norm_first ? scatter(y, point.gate, point.pool, point.x) : y;
  }
  Tensor leave_back(const Tensor& x) const {
    return point.norm_first ? x : scatter(x, point.gate, point.pool, point.x);
  }

  const NormPoint& point;
  const Normalised norm;
};

}  // namespace

Tensor norm_act_pool_second(const NormPoint& point, const NormDirection& v,
                            const NormDirection& c) {
  const NormView view(point);
  const auto vx = view.enter(v.x), cx = view.enter(c.x);
  auto sum = scaled(point.weight, view.norm.derivative(vx, cx));
  sum = plus_scaled(sum, v.weight, view.norm.derivative(cx));
  return view.leave(plus_scaled(sum, c.weight, view.norm.derivative(vx)));
}

std::tuple<Tensor, Tensor> norm_act_pool_third(const NormPoint& point, const Tensor& grad,
                                               const NormDirection& v, const NormDirection& c) {
  const NormView view(point);
  const auto vx = view.enter(v.x), cx = view.enter(c.x), h = view.enter_back(grad);
  auto x_grad = scaled(point.weight, view.norm.derivative(h, vx, cx));
  x_grad = plus_scaled(x_grad, v.weight, view.norm.derivative(h, cx));
  x_grad = plus_scaled(x_grad, c.weight, view.norm.derivative(h, vx));
  return {view.leave_back(x_grad), sum_of(h * view.norm.derivative(vx, cx))};
}

namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> norm_act_pool(const Tensor& x,
                                                         const OptionalTensor& weight,
                                                         const OptionalTensor& bias, double eps,
                                                         bool relu, bool pool, bool norm_first) {
  check_norm_act_pool(x, weight, bias, eps, pool);
  Tensor u = x, gate;
  if (!norm_first) std::tie(u, gate) = open_gate(x, relu, pool);
  const Normalised norm(u, eps);
  auto y = scaled(weight.value_or(Tensor()), norm.xhat);
  if (bias.has_value()) y = y + per_channel(*bias);
  if (norm_first) std::tie(y, gate) = open_gate(y, relu, pool);
  const std::vector<int64_t> per_task = {x.size(0), x.size(2)};
  return {y.contiguous(), norm.mean.reshape(per_task), norm.rstd.reshape(per_task), gate};
}

std::tuple<Tensor, Tensor, Tensor> norm_act_pool_backward(const Tensor& grad, const Tensor& x,
                                                          const OptionalTensor& weight,
                                                          const Tensor& mean, const Tensor& rstd,
                                                          const Tensor& gate, double eps, bool pool,
                                                          bool norm_first) {
  constexpr auto op = "norm_act_pool_backward";
  check_norm_act_pool_point(op, x, weight, mean, rstd, gate, pool);
  check_like_output(op, "grad", grad, x, pool);
  const NormPoint point{x, weight.value_or(Tensor()), gate, eps, pool, norm_first};
  const NormView view(point);
  const auto h = view.enter_back(grad);
  const auto x_grad = view.leave_back(scaled(point.weight, view.norm.derivative(h)));
  return {x_grad.contiguous(), sum_of(h * view.norm.xhat), sum_of(h)};
}

Tensor norm_act_pool_tangent(const Tensor& x_dot, const OptionalTensor& weight_dot,
                             const OptionalTensor& bias_dot, const Tensor& x,
                             const OptionalTensor& weight, const Tensor& mean, const Tensor& rstd,
                             const Tensor& gate, double eps, bool pool, bool norm_first) {
  constexpr auto op = "norm_act_pool_tangent";
  check_norm_act_pool_point(op, x, weight, mean, rstd, gate, pool);
  check_norm_act_pool_direction(op, x_dot, weight_dot, bias_dot, x);
  const NormPoint point{x, weight.value_or(Tensor()), gate, eps, pool, norm_first};
  const NormView view(point);
  auto y_dot = scaled(point.weight, view.norm.derivative(view.enter(x_dot)));
  if (weight_dot.has_value()) y_dot = plus_scaled(y_dot, *weight_dot, view.norm.xhat);
  if (bias_dot.has_value()) y_dot = y_dot + per_channel(*bias_dot);
  return view.leave(y_dot).contiguous();
}

std::tuple<Tensor, Tensor, Tensor> norm_act_pool_double_backward(
    const Tensor& x_dot, const OptionalTensor& weight_dot, const OptionalTensor& bias_dot,
    const Tensor& grad, const Tensor& x, const OptionalTensor& weight, const Tensor& mean,
    const Tensor& rstd, const Tensor& gate, double eps, bool pool, bool norm_first) {
  check_like_output("norm_act_pool_double_backward", "grad", grad, x, pool);
  const auto y_dot = norm_act_pool_tangent(x_dot, weight_dot, bias_dot, x, weight, mean, rstd, gate,
                                           eps, pool, norm_first);
  const NormPoint point{x, weight.value_or(Tensor()), gate, eps, pool, norm_first};
  const NormView view(point);
  const auto v = view.enter(x_dot), h = view.enter_back(grad);
  auto x_grad = scaled(point.weight, view.norm.derivative(h, v));
  if (weight_dot.has_value()) x_grad = plus_scaled(x_grad, *weight_dot, view.norm.derivative(h));
  return {y_dot, view.leave_back(x_grad).contiguous(), sum_of(h * view.norm.derivative(v))};
}

}  // namespace
}  // namespace metasparse::dense

TORCH_LIBRARY_FRAGMENT(metasparse_dense, m) {
  m.def("norm_act_pool", metasparse::dense::norm_act_pool);
  m.def("norm_act_pool_backward", metasparse::dense::norm_act_pool_backward);
  m.def("norm_act_pool_tangent", metasparse::dense::norm_act_pool_tangent);
  m.def("norm_act_pool_double_backward", metasparse::dense::norm_act_pool_double_backward);
}
