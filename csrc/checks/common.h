#pragma once
// Checks of the dispatcher's ops. Messages name the op, the argument, what was expected and what
// came. Sizes are symbolic, because the kernels that only infer shapes make the same checks.
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>
#include <string>

namespace metasparse {

// A dtype by torch's own name, "float32": c10's operator<< says "Float".
inline std::string dtype_name(at::ScalarType dtype) {
  return std::string(c10::getDtypeNames(dtype).first);
}

inline void check_rank(const char* op, const char* name, const at::Tensor& t, int64_t rank,
                       const char* letters) {
  TORCH_CHECK_VALUE(t.dim() == rank, op, ": expected ", name, " of shape ", letters, ", got ",
                    t.sym_sizes());
}

inline void check_size(const char* op, const char* name, const at::Tensor& t, int64_t dim,
                       const c10::SymInt& expected, const char* meaning) {
  TORCH_CHECK_VALUE(t.sym_size(dim) == expected, op, ": expected ", name, ".size(", dim, ") to be ",
                    meaning, " = ", expected, ", got ", name, " of shape ", t.sym_sizes());
}

inline void check_shape_like(const char* op, const char* name, const at::Tensor& t,
                             const char* other_name, const at::Tensor& other) {
  TORCH_CHECK_VALUE(t.sym_sizes() == other.sym_sizes(), op, ": expected ", name, " of shape ",
                    other.sym_sizes(), " like ", other_name, ", got ", t.sym_sizes());
}

inline void check_dtype(const char* op, const char* name, const at::Tensor& t,
                        at::ScalarType expected) {
  TORCH_CHECK_TYPE(t.scalar_type() == expected, op, ": expected ", name, " of dtype ",
                   dtype_name(expected), ", got ", dtype_name(t.scalar_type()));
}

// The kernels of the CPU compute in float32 and float64. Those of other devices have narrow types
// too, which they accumulate in float32; a tensor on meta may stand for one of either.
inline void check_floating(const char* op, const char* name, const at::Tensor& t) {
  const auto dtype = t.scalar_type();
  const bool narrow = !t.is_cpu() && (dtype == at::kHalf || dtype == at::kBFloat16);
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble || narrow, op, ": expected ", name,
                   " of dtype float32 or float64", t.is_cpu() ? "" : ", float16 or bfloat16",
                   ", got ", dtype_name(dtype));
}

inline void check_same_device(const char* op, const char* name, const at::Tensor& t,
                              const char* other_name, const at::Tensor& other) {
  TORCH_CHECK_VALUE(t.device() == other.device(), op, ": expected ", name, " on ", other.device(),
                    " like ", other_name, ", got ", t.device());
}

inline void check_same_kind(const char* op, const char* name, const at::Tensor& t,
                            const char* other_name, const at::Tensor& other) {
  TORCH_CHECK_TYPE(t.scalar_type() == other.scalar_type(), op, ": expected ", name, " of dtype ",
                   dtype_name(other.scalar_type()), " like ", other_name, ", got ",
                   dtype_name(t.scalar_type()));
  check_same_device(op, name, t, other_name, other);
}

}  // namespace metasparse
