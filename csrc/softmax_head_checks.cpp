#include "softmax_head_checks.h"

#include "checks.h"

namespace metasparse {

void check_softmax_head(const char* op, const at::Tensor& features, const at::Tensor& labels,
                        const at::Tensor& center, const at::Tensor& lam) {
  check_rank(op, "features", features, 3, "(T, N, D)");
  check_rank(op, "labels", labels, 2, "(T, N)");
  check_rank(op, "center", center, 3, "(T, C, D)");
  check_rank(op, "lam", lam, 1, "(T,)");
  TORCH_CHECK_TYPE(features.scalar_type() == at::kFloat || features.scalar_type() == at::kDouble,
                   op, ": expected features of dtype float or double, got ",
                   features.scalar_type());
  TORCH_CHECK_TYPE(labels.scalar_type() == at::kLong, op, ": expected labels of dtype int64, got ",
                   labels.scalar_type());
  check_same_kind(op, "center", center, "features", features);
  check_same_kind(op, "lam", lam, "features", features);
  const auto tasks = features.size(0);
  check_size(op, "labels", labels, 0, tasks, "T");
  check_size(op, "labels", labels, 1, features.size(1), "N");
  check_size(op, "center", center, 0, tasks, "T");
  check_size(op, "center", center, 2, features.size(2), "D");
  check_size(op, "lam", lam, 0, tasks, "T");
  TORCH_CHECK_VALUE(features.size(1) > 0, op, ": expected features of at least one sample, got ",
                    features.sizes());
  TORCH_CHECK_VALUE(center.size(1) > 0, op, ": expected center of at least one class, got ",
                    center.sizes());
}

void check_softmax_head_like_center(const char* op, const char* name, const at::Tensor& t,
                                    const at::Tensor& center) {
  TORCH_CHECK_VALUE(t.sizes() == center.sizes(), op, ": expected ", name, " of shape ",
                    center.sizes(), " like center, got ", t.sizes());
  check_same_kind(op, name, t, "center", center);
}

}  // namespace metasparse
