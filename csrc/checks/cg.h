#pragma once
// Arguments of cg_step, checked once for every device.
#include <ATen/core/Tensor.h>

#include <optional>

namespace metasparse {

void check_cg_step(const at::Tensor& x, const at::Tensor& r, const at::Tensor& p,
                   const at::Tensor& q, const std::optional<at::Tensor>& preconditioner,
                   const at::Tensor& rz, const at::Tensor& rr, const at::Tensor& limit,
                   const at::Tensor& status, const at::Tensor& iterations);

}  // namespace metasparse
