#pragma once
// Checks of the dispatcher's ops. Messages name the op, the argument, what was expected and what
// came.
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>

namespace metasparse {

inline void check_rank(const char* op, const char* name, const at::Tensor& t, int64_t rank,
                       const char* letters) {
  TORCH_CHECK_VALUE(t.dim() == rank, op, ": expected ", name, " of shape ", letters, ", got ",
                    t.sizes());
}

inline void check_size(const char* op, const char* name, const at::Tensor& t, int64_t dim,
                       int64_t expected, const char* meaning) {
  TORCH_CHECK_VALUE(t.size(dim) == expected, op, ": expected ", name, ".size(", dim, ") to be ",
                    meaning, " = ", expected, ", got ", name, " of shape ", t.sizes());
}

inline void check_same_kind(const char* op, const char* name, const at::Tensor& t,
                            const char* other_name, const at::Tensor& other) {
  TORCH_CHECK_TYPE(t.scalar_type() == other.scalar_type(), op, ": expected ", name, " of dtype ",
                   other.scalar_type(), " like ", other_name, ", got ", t.scalar_type());
  TORCH_CHECK_VALUE(t.device() == other.device(), op, ": expected ", name, " on ", other.device(),
                    " like ", other_name, ", got ", t.device());
}

}  // namespace metasparse
