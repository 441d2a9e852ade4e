#include "cg.h"

#include "common.h"

namespace metasparse {
namespace {

using at::Tensor;

void check_vector(const char* name, const Tensor& t, const Tensor& x) {
  check_shape_like("cg_step", name, t, "x", x);
  check_same_kind("cg_step", name, t, "x", x);
}

void check_state(const char* name, const Tensor& t, const Tensor& x, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(t.dim() == 1 && t.sym_size(0) == x.sym_size(0) && t.is_contiguous(),
                    "cg_step: expected ", name, " to be dense of shape [", x.sym_size(0), "], got ",
                    t.sym_sizes());
  check_dtype("cg_step", name, t, dtype);
  check_same_device("cg_step", name, t, "x", x);
}

void check_written(const char* name, const Tensor& t) {
  TORCH_CHECK_VALUE(t.is_contiguous(), "cg_step: expected ", name,
                    ", which is updated in place, to be contiguous, got strides ", t.sym_strides());
}

}  // namespace

void check_cg_step(const Tensor& x, const Tensor& r, const Tensor& p, const Tensor& q,
                   const std::optional<Tensor>& preconditioner, const Tensor& rz, const Tensor& rr,
                   const Tensor& limit, const Tensor& status, const Tensor& iterations) {
  check_rank("cg_step", "x", x, 2, "(T, P)");
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble,
                   "cg_step: expected x of dtype float32 or float64, got ",
                   dtype_name(x.scalar_type()));
  check_vector("r", r, x);
  check_vector("p", p, x);
  check_vector("q", q, x);
  check_written("x", x);
  check_written("r", r);
  check_written("p", p);
  for (const auto& [name, state] :
       {std::pair("rz", rz), std::pair("rr", rr), std::pair("limit", limit)}) {
    check_state(name, state, x, at::kDouble);
  }
  check_state("status", status, x, at::kLong);
  check_state("iterations", iterations, x, at::kLong);
  if (preconditioner.has_value()) check_vector("preconditioner", *preconditioner, x);
}

}  // namespace metasparse
