#include "norm_act_pool_nodes.h"

#include <mutex>

namespace metasparse::norm_autograd {

using torch::autograd::variable_list;

variable_list NormActPoolBackward::apply(variable_list&& grads) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!grads[0].defined()) return variable_list(3);
  const auto v = point.unpack().backward(grads[0]);
  return {v.x, v.weight, v.bias};
}

void NormActPoolBackward::release_variables() {
  const std::lock_guard<std::mutex> lock(mutex_);
  point.reset();
}

variable_list NormActPoolTangentBackward::apply(variable_list&& grads) {
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

void NormActPoolTangentBackward::release_variables() {
  const std::lock_guard<std::mutex> lock(mutex_);
  point.reset();
  direction.reset();
}

variable_list NormActPoolBackwardBackward::apply(variable_list&& grads) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const NormDirection v{grads[0], grads[1], grads[2]};
  if (!any_defined(v)) return variable_list(3);
  const auto [y_dot, h] = point.unpack().double_backward(v, grad.unpack());
  return {y_dot, h.x, h.weight};
}

void NormActPoolBackwardBackward::release_variables() {
  const std::lock_guard<std::mutex> lock(mutex_);
  point.reset();
  grad.reset_data();
}

variable_list NormActPoolDoubleBackwardBackward::apply(variable_list&& grads) {
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

void NormActPoolDoubleBackwardBackward::release_variables() {
  const std::lock_guard<std::mutex> lock(mutex_);
  point.reset();
  direction.reset();
  grad.reset_data();
}

}  // namespace metasparse::norm_autograd
