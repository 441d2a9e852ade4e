#pragma once
#include <ATen/ops/empty.h>

#include "runtime/memory.h"

namespace metasparse::cpu {

// Uninitialized memory for a result that is written as soon as it is there; huge pages, if it is
// large.
inline at::Tensor empty_large(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const at::Tensor t = at::empty(sizes, options);
  if (t.is_cpu()) advise_huge_pages(t.mutable_data_ptr(), t.nbytes());
  return t;
}

}  // namespace metasparse::cpu
