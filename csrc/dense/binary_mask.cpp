// binary_mask is one comparison, at the speed of memory on every device.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "../checks/mask.h"

namespace metasparse::dense {
namespace {

at::Tensor binary_mask(const at::Tensor& scores) {
  check_binary_mask(scores);
  auto mask = at::empty_like(scores, at::MemoryFormat::Contiguous);
  return at::gt_out(mask, scores, 0);
}

}  // namespace
}  // namespace metasparse::dense

TORCH_LIBRARY_IMPL(metasparse, CompositeExplicitAutograd, m) {
  m.impl("binary_mask", metasparse::dense::binary_mask);
}
