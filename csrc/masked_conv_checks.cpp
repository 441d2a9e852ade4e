#include "masked_conv_checks.h"

#include "checks.h"

namespace metasparse {
namespace {

using at::IntArrayRef;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

void check_window(const char* op, IntArrayRef stride, IntArrayRef padding) {
  TORCH_CHECK_VALUE(stride.size() == 2 && stride[0] > 0 && stride[1] > 0, op,
                    ": expected stride to be two positive integers, got ", stride);
  TORCH_CHECK_VALUE(padding.size() == 2 && padding[0] >= 0 && padding[1] >= 0, op,
                    ": expected padding to be two integers >= 0, got ", padding);
}

void check_floating(const char* op, const char* name, const Tensor& t) {
  TORCH_CHECK_TYPE(t.scalar_type() == at::kFloat || t.scalar_type() == at::kDouble, op,
                   ": expected ", name, " of dtype float32 or float64, got ", t.scalar_type());
}

void check_mask(const char* op, const OptionalTensor& mask, int64_t tasks, int64_t out, int64_t in,
                const char* like_name, const Tensor& like) {
  if (!mask.has_value()) return;
  check_rank(op, "mask", *mask, 3, "(T, O, I)");
  check_same_kind(op, "mask", *mask, like_name, like);
  const int64_t expected[] = {tasks, out, in};
  TORCH_CHECK_VALUE(mask->sizes() == IntArrayRef(expected), op,
                    ": expected mask of shape (T, O, I) = ", IntArrayRef(expected), ", got ",
                    mask->sizes());
}

// The window must fit `input` and give `output`.
void check_output_size(const char* op, IntArrayRef input, IntArrayRef kernel, IntArrayRef output,
                       IntArrayRef stride, IntArrayRef padding) {
  for (int d = 0; d < 2; ++d) {
    TORCH_CHECK_VALUE(input[d] + 2 * padding[d] >= kernel[d], op, ": a kernel of ", kernel,
                      " does not fit an input of ", input, " padded by ", padding);
    const auto expected = conv_out_size(input[d], kernel[d], stride[d], padding[d]);
    TORCH_CHECK_VALUE(output[d] == expected, op, ": expected grad.size(", d + 3, ") = ", expected,
                      " for an input of ", input, ", a kernel of ", kernel, ", stride ", stride,
                      " and padding ", padding, ", got ", output[d]);
  }
}

}  // namespace

void check_masked_conv(const Tensor& x, const Tensor& weight, const OptionalTensor& mask,
                       const OptionalTensor& bias, IntArrayRef stride, IntArrayRef padding) {
  constexpr auto op = "masked_conv";
  check_window(op, stride, padding);
  check_rank(op, "x", x, 5, "(T, N, I, H, W)");
  check_floating(op, "x", x);
  check_rank(op, "weight", weight, 5, "(T, O, I, kh, kw)");
  check_same_kind(op, "weight", weight, "x", x);
  check_size(op, "weight", weight, 0, x.size(0), "T");
  check_size(op, "weight", weight, 2, x.size(2), "I");
  check_mask(op, mask, x.size(0), weight.size(1), weight.size(2), "x", x);
  if (bias.has_value()) {
    check_rank(op, "bias", *bias, 2, "(T, O)");
    check_same_kind(op, "bias", *bias, "x", x);
    check_size(op, "bias", *bias, 0, x.size(0), "T");
    check_size(op, "bias", *bias, 1, weight.size(1), "O");
  }
  for (int d = 0; d < 2; ++d) {
    TORCH_CHECK_VALUE(
        weight.size(d + 3) > 0 && x.size(d + 3) + 2 * padding[d] >= weight.size(d + 3), op,
        ": a kernel of ", weight.sizes().slice(3), " does not fit an input of ", x.sizes().slice(3),
        " padded by ", padding);
  }
}

void check_masked_conv_input_grad(const Tensor& grad, const Tensor& weight,
                                  const OptionalTensor& mask, IntArrayRef input_size,
                                  IntArrayRef stride, IntArrayRef padding) {
  constexpr auto op = "masked_conv_input_grad";
  check_window(op, stride, padding);
  check_rank(op, "grad", grad, 5, "(T, N, O, Ho, Wo)");
  check_floating(op, "grad", grad);
  check_rank(op, "weight", weight, 5, "(T, O, I, kh, kw)");
  check_same_kind(op, "weight", weight, "grad", grad);
  check_size(op, "weight", weight, 0, grad.size(0), "T");
  check_size(op, "weight", weight, 1, grad.size(2), "O");
  check_mask(op, mask, grad.size(0), weight.size(1), weight.size(2), "grad", grad);
  check_output_size(op, input_size, weight.sizes().slice(3), grad.sizes().slice(3), stride,
                    padding);
}

void check_masked_conv_weight_grad(const Tensor& grad, const Tensor& x, const OptionalTensor& mask,
                                   IntArrayRef kernel_size, IntArrayRef stride,
                                   IntArrayRef padding) {
  constexpr auto op = "masked_conv_weight_grad";
  check_window(op, stride, padding);
  check_rank(op, "grad", grad, 5, "(T, N, O, Ho, Wo)");
  check_floating(op, "grad", grad);
  check_rank(op, "x", x, 5, "(T, N, I, H, W)");
  check_same_kind(op, "x", x, "grad", grad);
  check_size(op, "x", x, 0, grad.size(0), "T");
  check_size(op, "x", x, 1, grad.size(1), "N");
  check_mask(op, mask, grad.size(0), grad.size(2), x.size(2), "grad", grad);
  check_output_size(op, x.sizes().slice(3), kernel_size, grad.sizes().slice(3), stride, padding);
}

}  // namespace metasparse
