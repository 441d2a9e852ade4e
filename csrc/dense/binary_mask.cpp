// binary_mask is one comparison, at the speed of memory on every device.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "../checks/mask.h"

namespace metasparse::dense {
namespace {

at::Tensor binary_mask(const at::Tensor& scores, double threshold) {
  check_binary_mask(scores, threshold);
  auto mask = at::empty_like(scores, at::MemoryFormat::Contiguous);
  return at::gt_out(mask, scores, threshold);
}

// In one pass: a comparison with a number is five ops of torch, most of which make a tensor of it.
at::Tensor binary_mask_cpu(const at::Tensor& scores, double threshold) {
  const bool wide = scores.scalar_type() == at::kFloat || scores.scalar_type() == at::kDouble;
  if (!wide || !scores.is_contiguous()) return binary_mask(scores, threshold);
  auto mask = at::empty(scores.sizes(), scores.options());
  AT_DISPATCH_FLOATING_TYPES(scores.scalar_type(), "binary_mask", [&] {
    const auto* const from = scores.const_data_ptr<scalar_t>();
    auto* const to = mask.mutable_data_ptr<scalar_t>();
    const auto least = static_cast<scalar_t>(threshold);
    constexpr int64_t kGrain = 1 << 15;  // numbers worth a thread
    at::parallel_for(0, scores.numel(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) to[i] = from[i] > least ? 1 : 0;
    });
  });
  return mask;
}

}  // namespace
}  // namespace metasparse::dense

TORCH_LIBRARY_IMPL(metasparse, CompositeExplicitAutograd, m) {
  m.impl("binary_mask", metasparse::dense::binary_mask);
}

TORCH_LIBRARY_IMPL(metasparse, CPU, m) {
  m.impl("binary_mask", metasparse::dense::binary_mask_cpu);
}
