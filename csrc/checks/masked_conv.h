#pragma once
// Arguments of the masked convolution family, checked once for every device.
#include <ATen/core/Tensor.h>

#include <c10/core/SymIntArrayRef.h>

#include <optional>

namespace metasparse {

// Sizes given as numbers: plain where a kernel runs, symbolic where shapes are only inferred.
class AnySizes : public c10::SymIntArrayRef {
 public:
  AnySizes(at::IntArrayRef sizes) : ArrayRef(c10::fromIntArrayRefSlow(sizes)) {}
  AnySizes(c10::SymIntArrayRef sizes) : ArrayRef(sizes) {}
};

void check_masked_conv(const at::Tensor& x, const at::Tensor& weight,
                       const std::optional<at::Tensor>& mask, const std::optional<at::Tensor>& bias,
                       at::IntArrayRef stride, at::IntArrayRef padding);

void check_masked_conv_input_grad(const at::Tensor& grad, const at::Tensor& weight,
                                  const std::optional<at::Tensor>& mask, const AnySizes& input_size,
                                  at::IntArrayRef stride, at::IntArrayRef padding);

void check_masked_conv_weight_grad(const at::Tensor& grad, const at::Tensor& x,
                                   const std::optional<at::Tensor>& mask,
                                   const AnySizes& kernel_size, at::IntArrayRef stride,
                                   at::IntArrayRef padding);

void check_masked_conv_mask_grad(const at::Tensor& grad, const at::Tensor& x,
                                 const at::Tensor& weight, at::IntArrayRef stride,
                                 at::IntArrayRef padding);

void check_masked_conv_pair(const at::Tensor& x1, const at::Tensor& weight1,
                            const std::optional<at::Tensor>& mask1, const at::Tensor& x2,
                            const at::Tensor& weight2, const std::optional<at::Tensor>& mask2,
                            const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                            at::IntArrayRef padding);

void check_masked_conv_input_grad_pair(const at::Tensor& grad1, const at::Tensor& weight1,
                                       const std::optional<at::Tensor>& mask1,
                                       const at::Tensor& grad2, const at::Tensor& weight2,
                                       const std::optional<at::Tensor>& mask2,
                                       const AnySizes& input_size, at::IntArrayRef stride,
                                       at::IntArrayRef padding);

void check_masked_conv_weight_grad_pair(const at::Tensor& grad1, const at::Tensor& x1,
                                        const at::Tensor& grad2, const at::Tensor& x2,
                                        const std::optional<at::Tensor>& mask,
                                        const AnySizes& kernel_size, at::IntArrayRef stride,
                                        at::IntArrayRef padding);

void check_masked_conv_backward(const at::Tensor& grad, const at::Tensor& x,
                                const at::Tensor& weight, const std::optional<at::Tensor>& mask,
                                at::IntArrayRef stride, at::IntArrayRef padding);

// Positions of a sliding window of `kernel` over `size` padded by `padding` on both sides.
template <class Int>
Int conv_out_size(const Int& size, const Int& kernel, int64_t stride, int64_t padding) {
  return (size + 2 * padding - kernel) / stride + 1;
}

}  // namespace metasparse
