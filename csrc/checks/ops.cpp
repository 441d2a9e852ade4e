// The checks of the ops' arguments as ops themselves, for what runs from Python: backends that are
// chosen there, and the fake kernels, which only infer shapes. An op of the same name in metasparse
// takes the same arguments.
#include <torch/library.h>

#include "cg.h"
#include "common.h"
#include "depthwise_conv.h"
#include "mask.h"
#include "masked_conv.h"
#include "masked_weight.h"
#include "norm_act_pool.h"
#include "score_gate.h"
#include "softmax_head.h"
#include "task_cross_entropy.h"
#include "task_linear.h"

namespace metasparse {
namespace {

using at::IntArrayRef;
using at::Tensor;
using c10::SymIntArrayRef;
using OptionalTensor = std::optional<Tensor>;

void conv_input_grad(const Tensor& grad, const Tensor& weight, const OptionalTensor& mask,
                     SymIntArrayRef input_size, IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv_input_grad(grad, weight, mask, input_size, stride, padding);
}

void conv_weight_grad(const Tensor& grad, const Tensor& x, const OptionalTensor& mask,
                      SymIntArrayRef kernel_size, IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv_weight_grad(grad, x, mask, kernel_size, stride, padding);
}

void conv_input_grad_pair(const Tensor& grad1, const Tensor& weight1, const OptionalTensor& mask1,
                          const Tensor& grad2, const Tensor& weight2, const OptionalTensor& mask2,
                          SymIntArrayRef input_size, IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv_input_grad_pair(grad1, weight1, mask1, grad2, weight2, mask2, input_size,
                                    stride, padding);
}

void conv_weight_grad_pair(const Tensor& grad1, const Tensor& x1, const Tensor& grad2,
                           const Tensor& x2, const OptionalTensor& mask, SymIntArrayRef kernel_size,
                           IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv_weight_grad_pair(grad1, x1, grad2, x2, mask, kernel_size, stride, padding);
}

void conv_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                   const OptionalTensor& mask, bool /*input_wanted*/, bool /*dense*/,
                   bool /*bias_wanted*/, IntArrayRef stride, IntArrayRef padding) {
  check_masked_conv_backward(grad, x, weight, mask, stride, padding);
}

void depthwise_input_grad(const Tensor& grad, const Tensor& weight, SymIntArrayRef input_size,
                          IntArrayRef stride, IntArrayRef padding) {
  check_depthwise_conv_input_grad(grad, weight, input_size, stride, padding);
}

void depthwise_weight_grad(const Tensor& grad, const Tensor& x, SymIntArrayRef kernel_size,
                           IntArrayRef stride, IntArrayRef padding) {
  check_depthwise_conv_weight_grad(grad, x, kernel_size, stride, padding);
}

void norm_act_pool(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                   double eps, bool /*relu*/, bool pool, bool /*norm_first*/) {
  check_norm_act_pool(x, weight, bias, eps, pool);
}

void norm_act_pool_backward(const Tensor& grad, const Tensor& x, const OptionalTensor& weight,
                            const Tensor& mean, const Tensor& rstd, const Tensor& gate,
                            double /*eps*/, bool pool, bool /*norm_first*/) {
  constexpr auto op = "norm_act_pool_backward";
  check_norm_act_pool_point(op, x, weight, mean, rstd, gate, pool);
  check_like_output(op, "grad", grad, x, pool);
}

void norm_act_pool_tangent(const Tensor& x_dot, const OptionalTensor& weight_dot,
                           const OptionalTensor& bias_dot, const Tensor& x,
                           const OptionalTensor& weight, const Tensor& mean, const Tensor& rstd,
                           const Tensor& gate, double /*eps*/, bool pool, bool /*norm_first*/) {
  constexpr auto op = "norm_act_pool_tangent";
  check_norm_act_pool_point(op, x, weight, mean, rstd, gate, pool);
  check_norm_act_pool_direction(op, x_dot, weight_dot, bias_dot, x);
}

void norm_act_pool_double_backward(const Tensor& x_dot, const OptionalTensor& weight_dot,
                                   const OptionalTensor& bias_dot, const Tensor& grad,
                                   const Tensor& x, const OptionalTensor& weight,
                                   const Tensor& mean, const Tensor& rstd, const Tensor& gate,
                                   double /*eps*/, bool pool, bool /*norm_first*/) {
  constexpr auto op = "norm_act_pool_double_backward";
  check_norm_act_pool_point(op, x, weight, mean, rstd, gate, pool);
  check_norm_act_pool_direction(op, x_dot, weight_dot, bias_dot, x);
  check_like_output(op, "grad", grad, x, pool);
}

void softmax_head(const Tensor& features, const Tensor& labels, const Tensor& center,
                  const Tensor& lam, double /*tolerance*/, int64_t /*max_iterations*/) {
  check_softmax_head("softmax_head", features, labels, center, lam);
}

}  // namespace
}  // namespace metasparse

TORCH_LIBRARY(metasparse_check, m) {
  m.def("masked_conv", metasparse::check_masked_conv);
  m.def("masked_conv_input_grad", metasparse::conv_input_grad);
  m.def("masked_conv_weight_grad", metasparse::conv_weight_grad);
  m.def("masked_conv_mask_grad", metasparse::check_masked_conv_mask_grad);
  m.def("masked_conv_pair", metasparse::check_masked_conv_pair);
  m.def("masked_conv_input_grad_pair", metasparse::conv_input_grad_pair);
  m.def("masked_conv_weight_grad_pair", metasparse::conv_weight_grad_pair);
  m.def("masked_conv_backward", metasparse::conv_backward);
  m.def("depthwise_conv", metasparse::check_depthwise_conv);
  m.def("depthwise_conv_input_grad", metasparse::depthwise_input_grad);
  m.def("depthwise_conv_weight_grad", metasparse::depthwise_weight_grad);
  m.def("norm_act_pool", metasparse::norm_act_pool);
  m.def("norm_act_pool_backward", metasparse::norm_act_pool_backward);
  m.def("norm_act_pool_tangent", metasparse::norm_act_pool_tangent);
  m.def("norm_act_pool_double_backward", metasparse::norm_act_pool_double_backward);
  m.def("binary_mask", metasparse::check_binary_mask);
  m.def("masked_weight_pair", metasparse::check_masked_weight_pair);
  m.def("masked_weight_backward", metasparse::check_masked_weight_backward);
  m.def("score_gate", metasparse::check_score_gate);
  m.def("score_gate_grad", metasparse::check_score_gate_grad);
  m.def("add_budget_gradient", metasparse::check_add_budget_gradient);
  m.def("task_cross_entropy", metasparse::check_task_cross_entropy);
  m.def("task_cross_entropy_backward", metasparse::check_task_cross_entropy_backward);
  m.def("task_cross_entropy_double_backward", metasparse::check_task_cross_entropy_double_backward);
  m.def("task_linear", metasparse::check_task_linear);
  m.def("task_linear_pair", metasparse::check_task_linear_pair);
  m.def("task_linear_backward", metasparse::check_task_linear_backward);
  m.def("topk_mask", metasparse::check_topk_mask);
  m.def("softmax_head", metasparse::softmax_head);
  m.def("softmax_head_grad", metasparse::check_softmax_head_grad);
  m.def("cg_step", metasparse::check_cg_step);
}
