#pragma once
// The window of a convolution, checked for every family of them.
#include <ATen/core/Tensor.h>

#include <c10/core/SymIntArrayRef.h>

namespace metasparse {

// Sizes given as numbers: plain where a kernel runs, symbolic where shapes are only inferred.
class AnySizes : public c10::SymIntArrayRef {
 public:
  AnySizes(at::IntArrayRef sizes) : ArrayRef(c10::fromIntArrayRefSlow(sizes)) {}
  AnySizes(c10::SymIntArrayRef sizes) : ArrayRef(sizes) {}
};

// Positions of a sliding window of `kernel` over `size` padded by `padding` on both sides.
template <class Int>
Int conv_out_size(const Int& size, const Int& kernel, int64_t stride, int64_t padding) {
  return (size + 2 * padding - kernel) / stride + 1;
}

void check_window(const char* op, at::IntArrayRef stride, at::IntArrayRef padding);

// The argument that the others are compared with: images or a gradient of images.
void check_images(const char* op, const char* name, const at::Tensor& t, const char* letters);

// The window must fit the input.
void check_fit(const char* op, c10::SymIntArrayRef input, c10::SymIntArrayRef kernel,
               at::IntArrayRef padding);

// The window must fit `input` and give `output`.
void check_output_size(const char* op, c10::SymIntArrayRef input, c10::SymIntArrayRef kernel,
                       c10::SymIntArrayRef output, at::IntArrayRef stride, at::IntArrayRef padding);

}  // namespace metasparse
