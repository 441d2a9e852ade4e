#pragma once
// Arguments of the norm_act_pool family, checked once for every device.
#include <ATen/core/Tensor.h>

#include <optional>

namespace metasparse {

void check_norm_act_pool(const at::Tensor& x, const std::optional<at::Tensor>& weight,
                         const std::optional<at::Tensor>& bias, double eps, bool pool);

// The point at which a derivative is taken: x, weight and what the forward pass saved.
void check_norm_act_pool_point(const char* op, const at::Tensor& x,
                               const std::optional<at::Tensor>& weight, const at::Tensor& mean,
                               const at::Tensor& rstd, const at::Tensor& gate, bool pool);

// A tensor of the shape of x, or of the result.
void check_like_input(const char* op, const char* name, const at::Tensor& t, const at::Tensor& x);
void check_like_output(const char* op, const char* name, const at::Tensor& t, const at::Tensor& x,
                       bool pool);

// A scale, a shift or the tangent of one: (T, C).
void check_per_channel(const char* op, const char* name, const std::optional<at::Tensor>& t,
                       const at::Tensor& x);

// A direction in the space of (x, weight, bias).
void check_norm_act_pool_direction(const char* op, const at::Tensor& x_dot,
                                   const std::optional<at::Tensor>& weight_dot,
                                   const std::optional<at::Tensor>& bias_dot, const at::Tensor& x);

}  // namespace metasparse
