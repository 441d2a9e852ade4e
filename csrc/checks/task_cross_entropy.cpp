#include "task_cross_entropy.h"

#include "common.h"

namespace metasparse {
namespace {

void check_point(const char* op, const at::Tensor& logits, const at::Tensor& labels) {
  check_rank(op, "logits", logits, 3, "(T, N, C)");
  TORCH_CHECK_TYPE(logits.is_floating_point(), op, ": expected logits of a floating dtype, got ",
                   dtype_name(logits.scalar_type()));
  TORCH_CHECK_VALUE(logits.sym_size(1) >= 1 && logits.sym_size(2) >= 1, op,
                    ": expected logits with N, C >= 1, got ", logits.sym_sizes());
  check_rank(op, "labels", labels, 2, "(T, N)");
  check_size(op, "labels", labels, 0, logits.sym_size(0), "T of logits");
  check_size(op, "labels", labels, 1, logits.sym_size(1), "N of logits");
  check_dtype(op, "labels", labels, at::kLong);
  check_same_device(op, "labels", labels, "logits", logits);
}

void check_grad(const char* op, const at::Tensor& grad, const at::Tensor& logits) {
  check_rank(op, "grad", grad, 1, "(T)");
  check_size(op, "grad", grad, 0, logits.sym_size(0), "T of logits");
  check_same_kind(op, "grad", grad, "logits", logits);
}

}  // namespace

void check_task_cross_entropy(const at::Tensor& logits, const at::Tensor& labels) {
  check_point("task_cross_entropy", logits, labels);
}

void check_task_cross_entropy_backward(const at::Tensor& grad, const at::Tensor& logits,
                                       const at::Tensor& labels) {
  constexpr auto op = "task_cross_entropy_backward";
  check_point(op, logits, labels);
  check_grad(op, grad, logits);
}

void check_task_cross_entropy_double_backward(const at::Tensor& direction, const at::Tensor& grad,
                                              const at::Tensor& logits, const at::Tensor& labels) {
  constexpr auto op = "task_cross_entropy_double_backward";
  check_point(op, logits, labels);
  check_grad(op, grad, logits);
  check_shape_like(op, "direction", direction, "logits", logits);
  check_same_kind(op, "direction", direction, "logits", logits);
}

}  // namespace metasparse
