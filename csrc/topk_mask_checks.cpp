#include "topk_mask_checks.h"

#include "checks.h"

namespace metasparse {

void check_topk_mask(const at::Tensor& scores, const at::Tensor& k) {
  constexpr const char* kOp = "topk_mask";
  check_rank(kOp, "scores", scores, 2, "(S, n)");
  check_rank(kOp, "k", k, 1, "(S)");
  check_size(kOp, "k", k, 0, scores.size(0), "the number of rows");
  const auto type = scores.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble, kOp,
                   ": expected scores of dtype float32 or float64, got ", type);
  TORCH_CHECK_TYPE(k.scalar_type() == at::kLong, kOp, ": expected k of dtype int64, got ",
                   k.scalar_type());
  TORCH_CHECK_VALUE(k.device() == scores.device(), kOp, ": expected k on ", scores.device(),
                    " like scores, got ", k.device());
}

}  // namespace metasparse
