#include "mask.h"

#include <cmath>

#include "common.h"

namespace metasparse {

void check_binary_mask(const at::Tensor& scores, double threshold) {
  TORCH_CHECK_TYPE(scores.is_floating_point(),
                   "binary_mask: expected scores of a floating dtype, got ",
                   dtype_name(scores.scalar_type()));
  TORCH_CHECK_VALUE(std::isfinite(threshold), "binary_mask: expected threshold to be finite, got ",
                    threshold);
}

void check_topk_mask(const at::Tensor& scores, const at::Tensor& k) {
  constexpr const char* kOp = "topk_mask";
  check_rank(kOp, "scores", scores, 2, "(S, n)");
  check_rank(kOp, "k", k, 1, "(S)");
  check_size(kOp, "k", k, 0, scores.sym_size(0), "the number of rows");
  const auto type = scores.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble, kOp,
                   ": expected scores of dtype float32 or float64, got ", dtype_name(type));
  check_dtype(kOp, "k", k, at::kLong);
  check_same_device(kOp, "k", k, "scores", scores);
}

}  // namespace metasparse
