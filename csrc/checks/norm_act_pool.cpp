#include "norm_act_pool.h"

#include "common.h"

namespace metasparse {
namespace {

void check_input(const char* op, const at::Tensor& x, bool pool) {
  check_rank(op, "x", x, 5, "(T, N, C, H, W)");
  check_floating(op, "x", x);
  const int64_t smallest = pool ? 2 : 1;
  TORCH_CHECK_VALUE(x.sym_size(1) >= 1 && x.sym_size(3) >= smallest && x.sym_size(4) >= smallest,
                    op, ": expected x with N >= 1 and H, W >= ", smallest, ", got ", x.sym_sizes());
}

void check_output_size(const char* op, const char* name, const at::Tensor& t, const at::Tensor& x,
                       bool pool) {
  check_rank(op, name, t, 5, "(T, N, C, H', W')");
  check_size(op, name, t, 0, x.sym_size(0), "T of x");
  check_size(op, name, t, 1, x.sym_size(1), "N of x");
  check_size(op, name, t, 2, x.sym_size(2), "C of x");
  check_size(op, name, t, 3, pool ? x.sym_size(3) / 2 : x.sym_size(3), "H'");
  check_size(op, name, t, 4, pool ? x.sym_size(4) / 2 : x.sym_size(4), "W'");
}

}  // namespace

void check_per_channel(const char* op, const char* name, const std::optional<at::Tensor>& t,
                       const at::Tensor& x) {
  if (!t.has_value()) return;
  check_rank(op, name, *t, 2, "(T, C)");
  check_size(op, name, *t, 0, x.sym_size(0), "T of x");
  check_size(op, name, *t, 1, x.sym_size(2), "C of x");
  check_same_kind(op, name, *t, "x", x);
}

void check_norm_act_pool(const at::Tensor& x, const std::optional<at::Tensor>& weight,
                         const std::optional<at::Tensor>& bias, double eps, bool pool) {
  constexpr auto op = "norm_act_pool";
  check_input(op, x, pool);
  check_per_channel(op, "weight", weight, x);
  check_per_channel(op, "bias", bias, x);
  TORCH_CHECK_VALUE(eps >= 0, op, ": expected eps >= 0, got ", eps);
}

void check_norm_act_pool_point(const char* op, const at::Tensor& x,
                               const std::optional<at::Tensor>& weight, const at::Tensor& mean,
                               const at::Tensor& rstd, const at::Tensor& gate, bool pool) {
  check_input(op, x, pool);
  check_per_channel(op, "weight", weight, x);
  check_per_channel(op, "mean", mean, x);
  check_per_channel(op, "rstd", rstd, x);
  check_dtype(op, "gate", gate, at::kByte);
  check_same_device(op, "gate", gate, "x", x);
  if (gate.dim() == 2 && !pool) return;  // nothing was gated
  check_output_size(op, "gate", gate, x, pool);
}

void check_like_input(const char* op, const char* name, const at::Tensor& t, const at::Tensor& x) {
  check_shape_like(op, name, t, "x", x);
  check_same_kind(op, name, t, "x", x);
}

void check_like_output(const char* op, const char* name, const at::Tensor& t, const at::Tensor& x,
                       bool pool) {
  check_output_size(op, name, t, x, pool);
  check_same_kind(op, name, t, "x", x);
}

void check_norm_act_pool_direction(const char* op, const at::Tensor& x_dot,
                                   const std::optional<at::Tensor>& weight_dot,
                                   const std::optional<at::Tensor>& bias_dot, const at::Tensor& x) {
  check_like_input(op, "x_dot", x_dot, x);
  check_per_channel(op, "weight_dot", weight_dot, x);
  check_per_channel(op, "bias_dot", bias_dot, x);
}

}  // namespace metasparse
