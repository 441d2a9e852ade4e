#include "softmax_head.h"

#include "common.h"

namespace metasparse {
namespace {

void check_like_center(const char* op, const char* name, const at::Tensor& t,
                       const at::Tensor& center) {
  check_shape_like(op, name, t, "center", center);
  check_same_kind(op, name, t, "center", center);
}

}  // namespace

void check_softmax_head(const char* op, const at::Tensor& features, const at::Tensor& labels,
                        const at::Tensor& center, const at::Tensor& lam) {
  check_rank(op, "features", features, 3, "(T, N, D)");
  check_rank(op, "labels", labels, 2, "(T, N)");
  check_rank(op, "center", center, 3, "(T, C, D)");
  check_rank(op, "lam", lam, 1, "(T,)");
  TORCH_CHECK_TYPE(features.scalar_type() == at::kFloat || features.scalar_type() == at::kDouble,
                   op, ": expected features of dtype float32 or float64, got ",
                   dtype_name(features.scalar_type()));
  check_dtype(op, "labels", labels, at::kLong);
  check_same_device(op, "labels", labels, "features", features);
  check_same_kind(op, "center", center, "features", features);
  check_same_kind(op, "lam", lam, "features", features);
  const auto tasks = features.sym_size(0);
  check_size(op, "labels", labels, 0, tasks, "T");
  check_size(op, "labels", labels, 1, features.sym_size(1), "N");
  check_size(op, "center", center, 0, tasks, "T");
  check_size(op, "center", center, 2, features.sym_size(2), "D");
  check_size(op, "lam", lam, 0, tasks, "T");
  TORCH_CHECK_VALUE(features.sym_size(1) > 0, op,
                    ": expected features of at least one sample, got ", features.sym_sizes());
  TORCH_CHECK_VALUE(center.sym_size(1) > 0, op, ": expected center of at least one class, got ",
                    center.sym_sizes());
}

void check_softmax_head_grad(const at::Tensor& grad, const at::Tensor& weight,
                             const at::Tensor& features, const at::Tensor& labels,
                             const at::Tensor& center, const at::Tensor& lam) {
  constexpr auto op = "softmax_head_grad";
  check_softmax_head(op, features, labels, center, lam);
  check_like_center(op, "grad", grad, center);
  check_like_center(op, "weight", weight, center);
}

}  // namespace metasparse
