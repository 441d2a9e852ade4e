// topk_mask by PyTorch's own stable sort: any device, no host synchronisation.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <limits>

#include "../checks/mask.h"

namespace metasparse::dense {
namespace {

using at::Tensor;

Tensor topk_mask(const Tensor& scores, const Tensor& k) {
  check_topk_mask(scores, k);
  const auto n = scores.size(1);
  const auto order = scores.argsort(/*stable=*/true, /*dim=*/1, /*descending=*/true);
  const auto taken = at::arange(n, k.options()).unsqueeze(0) < k.unsqueeze(1);
  auto mask = at::zeros_like(scores, at::MemoryFormat::Contiguous);
  mask.scatter_(1, order, taken.to(scores.scalar_type()));
  // An error would make the host wait for the device: a row that has no answer is NaN instead.
  const auto refused = scores.isnan().any(1).logical_or_(k < 0).logical_or_(k > n);
  return mask.masked_fill_(refused.unsqueeze(1), std::numeric_limits<double>::quiet_NaN());
}

}  // namespace
}  // namespace metasparse::dense

TORCH_LIBRARY_FRAGMENT(metasparse_dense, m) { m.def("topk_mask", metasparse::dense::topk_mask); }
