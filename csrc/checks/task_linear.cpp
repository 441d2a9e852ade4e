#include "task_linear.h"

#include "common.h"

namespace metasparse {
namespace {

void check_operands(const char* op, const at::Tensor& x, const at::Tensor& weight) {
  check_rank(op, "x", x, 3, "(T, N, F)");
  TORCH_CHECK_TYPE(x.is_floating_point(), op, ": expected x of a floating dtype, got ",
                   dtype_name(x.scalar_type()));
  check_rank(op, "weight", weight, 3, "(T, O, F)");
  check_size(op, "weight", weight, 0, x.sym_size(0), "T of x");
  check_size(op, "weight", weight, 2, x.sym_size(2), "F of x");
  check_same_kind(op, "weight", weight, "x", x);
}

void check_outputs(const char* op, const char* name, const at::Tensor& t, const at::Tensor& x,
                   const at::Tensor& weight) {
  check_size(op, name, t, 0, x.sym_size(0), "T of x");
  check_size(op, name, t, t.dim() - 1, weight.sym_size(1), "O of weight");
  check_same_kind(op, name, t, "x", x);
}

void check_bias(const char* op, const std::optional<at::Tensor>& bias, const at::Tensor& x,
                const at::Tensor& weight) {
  if (!bias.has_value()) return;
  check_rank(op, "bias", *bias, 2, "(T, O)");
  check_outputs(op, "bias", *bias, x, weight);
}

}  // namespace

void check_task_linear(const at::Tensor& x, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias) {
  constexpr auto op = "task_linear";
  check_operands(op, x, weight);
  check_bias(op, bias, x, weight);
}

void check_task_linear_pair(const at::Tensor& x1, const at::Tensor& weight1, const at::Tensor& x2,
                            const at::Tensor& weight2, const std::optional<at::Tensor>& bias) {
  constexpr auto op = "task_linear_pair";
  check_operands(op, x1, weight1);
  check_shape_like(op, "x2", x2, "x1", x1);
  check_same_kind(op, "x2", x2, "x1", x1);
  check_shape_like(op, "weight2", weight2, "weight1", weight1);
  check_same_kind(op, "weight2", weight2, "weight1", weight1);
  check_bias(op, bias, x1, weight1);
}

void check_task_linear_backward(const at::Tensor& grad, const at::Tensor& x,
                                const at::Tensor& weight) {
  constexpr auto op = "task_linear_backward";
  check_operands(op, x, weight);
  check_rank(op, "grad", grad, 3, "(T, N, O)");
  check_size(op, "grad", grad, 1, x.sym_size(1), "N of x");
  check_outputs(op, "grad", grad, x, weight);
}

}  // namespace metasparse
