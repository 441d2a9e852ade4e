#include "masked_conv.h"

#include "common.h"

namespace metasparse {
namespace {

using at::IntArrayRef;
using at::Tensor;
using c10::SymInt;
using c10::SymIntArrayRef;
using OptionalTensor = std::optional<Tensor>;

// A weight whose axis `channel_dim` must match the channels of `images`.
void check_weight(const char* op, const Tensor& weight, const char* images_name,
                  const Tensor& images, int64_t channel_dim, const char* letter) {
  check_rank(op, "weight", weight, 5, "(T, O, I, kh, kw)");
  check_same_kind(op, "weight", weight, images_name, images);
  check_size(op, "weight", weight, 0, images.sym_size(0), "T");
  check_size(op, "weight", weight, channel_dim, images.sym_size(2), letter);
}

void check_mask(const char* op, const OptionalTensor& mask, const SymInt& tasks, const SymInt& out,
                const SymInt& in, const char* like_name, const Tensor& like) {
  if (!mask.has_value()) return;
  check_rank(op, "mask", *mask, 3, "(T, O, I)");
  check_same_kind(op, "mask", *mask, like_name, like);
  const SymInt expected[] = {tasks, out, in};
  TORCH_CHECK_VALUE(mask->sym_sizes() == SymIntArrayRef(expected), op,
                    ": expected mask of shape (T, O, I) = ", SymIntArrayRef(expected), ", got ",
                    mask->sym_sizes());
}

// The second operand of a sum must be of the shape and kind of the first.
void check_alike(const char* op, const char* second_name, const Tensor& second,
                 const char* first_name, const Tensor& first) {
  check_same_kind(op, second_name, second, first_name, first);
  check_shape_like(op, second_name, second, first_name, first);
}

void check_forward(const char* op, const Tensor& x, const Tensor& weight,
                   const OptionalTensor& mask, const OptionalTensor& bias, IntArrayRef stride,
                   IntArrayRef padding) {
  check_window(op, stride, padding);
  check_images(op, "x", x, "(T, N, I, H, W)");
  check_weight(op, weight, "x", x, 2, "I");
  check_mask(op, mask, x.sym_size(0), weight.sym_size(1), weight.sym_size(2), "x", x);
  if (bias.has_value()) {
    check_rank(op, "bias", *bias, 2, "(T, O)");
    check_same_kind(op, "bias", *bias, "x", x);
    check_size(op, "bias", *bias, 0, x.sym_size(0), "T");
    check_size(op, "bias", *bias, 1, weight.sym_size(1), "O");
  }
  check_fit(op, x.sym_sizes().slice(3), weight.sym_sizes().slice(3), padding);
}

void check_input_grad(const char* op, const Tensor& grad, const Tensor& weight,
                      const OptionalTensor& mask, SymIntArrayRef input_size, IntArrayRef stride,
                      IntArrayRef padding) {
  check_window(op, stride, padding);
  check_images(op, "grad", grad, "(T, N, O, Ho, Wo)");
  check_weight(op, weight, "grad", grad, 1, "O");
  check_mask(op, mask, grad.sym_size(0), weight.sym_size(1), weight.sym_size(2), "grad", grad);
  check_output_size(op, input_size, weight.sym_sizes().slice(3), grad.sym_sizes().slice(3), stride,
                    padding);
}

void check_weight_grad(const char* op, const Tensor& grad, const Tensor& x,
                       const OptionalTensor& mask, SymIntArrayRef kernel_size, IntArrayRef stride,
                       IntArrayRef padding) {
  check_window(op, stride, padding);
  check_images(op, "grad", grad, "(T, N, O, Ho, Wo)");
  check_rank(op, "x", x, 5, "(T, N, I, H, W)");
  check_same_kind(op, "x", x, "grad", grad);
  check_size(op, "x", x, 0, grad.sym_size(0), "T");
  check_size(op, "x", x, 1, grad.sym_size(1), "N");
  check_mask(op, mask, grad.sym_size(0), grad.sym_size(2), x.sym_size(2), "grad", grad);
  check_output_size(op, x.sym_sizes().slice(3), kernel_size, grad.sym_sizes().slice(3), stride,
                    padding);
}

// What the derivatives in weight and mask are taken of: a gradient, the images and the weight.
void check_with_weight(const char* op, const Tensor& grad, const Tensor& x, const Tensor& weight,
                       const OptionalTensor& mask, IntArrayRef stride, IntArrayRef padding) {
  check_images(op, "grad", grad, "(T, N, O, Ho, Wo)");
  check_weight(op, weight, "grad", grad, 1, "O");
  check_weight_grad(op, grad, x, mask, weight.sym_sizes().slice(3), stride, padding);
  check_weight(op, weight, "x", x, 2, "I");
}

}  // namespace

void check_masked_conv(const Tensor& x, const Tensor& weight, const OptionalTensor& mask,
                       const OptionalTensor& bias, IntArrayRef stride, IntArrayRef padding) {
  check_forward("masked_conv", x, weight, mask, bias, stride, padding);
}

void check_masked_conv_input_grad(const Tensor& grad, const Tensor& weight,
                                  const OptionalTensor& mask, const AnySizes& input_size,
                                  IntArrayRef stride, IntArrayRef padding) {
  check_input_grad("masked_conv_input_grad", grad, weight, mask, input_size, stride, padding);
}

void check_masked_conv_weight_grad(const Tensor& grad, const Tensor& x, const OptionalTensor& mask,
                                   const AnySizes& kernel_size, IntArrayRef stride,
                                   IntArrayRef padding) {
  check_weight_grad("masked_conv_weight_grad", grad, x, mask, kernel_size, stride, padding);
}

void check_masked_conv_mask_grad(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                 IntArrayRef stride, IntArrayRef padding) {
  check_with_weight("masked_conv_mask_grad", grad, x, weight, std::nullopt, stride, padding);
}

void check_masked_conv_pair(const Tensor& x1, const Tensor& weight1, const OptionalTensor& mask1,
                            const Tensor& x2, const Tensor& weight2, const OptionalTensor& mask2,
                            const OptionalTensor& bias, IntArrayRef stride, IntArrayRef padding) {
  constexpr auto op = "masked_conv_pair";
  check_forward(op, x1, weight1, mask1, bias, stride, padding);
  check_alike(op, "x2", x2, "x1", x1);
  check_alike(op, "weight2", weight2, "weight1", weight1);
  check_mask(op, mask2, x1.sym_size(0), weight1.sym_size(1), weight1.sym_size(2), "x1", x1);
}

void check_masked_conv_input_grad_pair(const Tensor& grad1, const Tensor& weight1,
                                       const OptionalTensor& mask1, const Tensor& grad2,
                                       const Tensor& weight2, const OptionalTensor& mask2,
                                       const AnySizes& input_size, IntArrayRef stride,
                                       IntArrayRef padding) {
  constexpr auto op = "masked_conv_input_grad_pair";
  check_input_grad(op, grad1, weight1, mask1, input_size, stride, padding);
  check_alike(op, "grad2", grad2, "grad1", grad1);
  check_alike(op, "weight2", weight2, "weight1", weight1);
  check_mask(op, mask2, grad1.sym_size(0), weight1.sym_size(1), weight1.sym_size(2), "grad1",
             grad1);
}

void check_masked_conv_weight_grad_pair(const Tensor& grad1, const Tensor& x1, const Tensor& grad2,
                                        const Tensor& x2, const OptionalTensor& mask,
                                        const AnySizes& kernel_size, IntArrayRef stride,
                                        IntArrayRef padding) {
  constexpr auto op = "masked_conv_weight_grad_pair";
  check_weight_grad(op, grad1, x1, mask, kernel_size, stride, padding);
  check_alike(op, "grad2", grad2, "grad1", grad1);
  check_alike(op, "x2", x2, "x1", x1);
}

void check_masked_conv_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                const OptionalTensor& mask, IntArrayRef stride,
                                IntArrayRef padding) {
  check_with_weight("masked_conv_backward", grad, x, weight, mask, stride, padding);
}

}  // namespace metasparse
