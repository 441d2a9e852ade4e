#pragma once
// Gradients of the slices of a flat buffer, computed where they will lie.
//
// Parameters of T tasks are slices of one buffer (T, P), and so are their gradients: each would be
// computed into memory of its own and then copied. A slice's gradient of 512 x 512 kernels is as
// large as the caches, so a kernel asks here first where to write it.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace metasparse {

// The gradient of one cut of a buffer into slices, while it is being made. Lives with the autograd
// Node of the cut, which takes it over at the end of each backward pass.
class GradientBuffer {
 public:
  // `flat` (T, P) is cut into slices of so many numbers a task.
  GradientBuffer(const at::Tensor& flat, at::IntArrayRef counts);
  ~GradientBuffer();
  GradientBuffer(const GradientBuffer&) = delete;
  GradientBuffer& operator=(const GradientBuffer&) = delete;

  // Ends a backward pass: (T, P) in which the gradients lie that were computed in place. Undefined
  // where none was. `born[i]` says which.
  at::Tensor take(const std::vector<at::Tensor>& gradients, std::vector<char>& born);

 private:
  friend at::Tensor gradient_place(const at::Tensor& slice);

  // The slice at an offset in the buffer and of a shape, uninitialized; undefined if there is none
  // or it was given away in this pass.
  at::Tensor give(const at::Tensor& slice);

  const c10::StorageImpl* storage_;
  int64_t offset_, tasks_, stride_, total_;
  std::vector<int64_t> counts_, offsets_;
  at::TensorOptions options_;
  int pass_ = -1;  // torch's number of the backward pass that the rest is about
  at::Tensor flat_gradient_;
  std::vector<at::Tensor> given_;
};

// Memory for the gradient of a slice (T, ...) of a buffer that is being differentiated: of the
// slice's shape, dense below its task axis, not yet written. Undefined if the tensor is no such
// slice, or its place is taken already.
at::Tensor gradient_place(const at::Tensor& slice);

}  // namespace metasparse
