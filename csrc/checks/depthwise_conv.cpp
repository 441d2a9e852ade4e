#include "depthwise_conv.h"

#include "common.h"

namespace metasparse {
namespace {

using at::IntArrayRef;
using at::Tensor;

void check_weight(const char* op, const Tensor& weight, const char* images_name,
                  const Tensor& images) {
  check_rank(op, "weight", weight, 5, "(T, C, 1, kh, kw)");
  check_same_kind(op, "weight", weight, images_name, images);
  check_size(op, "weight", weight, 0, images.sym_size(0), "T");
  check_size(op, "weight", weight, 1, images.sym_size(2), "C");
  check_size(op, "weight", weight, 2, 1, "the channels that a kernel sees");
}

}  // namespace

void check_depthwise_conv(const Tensor& x, const Tensor& weight, IntArrayRef stride,
                          IntArrayRef padding) {
  constexpr auto op = "depthwise_conv";
  check_window(op, stride, padding);
  check_images(op, "x", x, "(T, N, C, H, W)");
  check_weight(op, weight, "x", x);
  check_fit(op, x.sym_sizes().slice(3), weight.sym_sizes().slice(3), padding);
}

void check_depthwise_conv_input_grad(const Tensor& grad, const Tensor& weight,
                                     const AnySizes& input_size, IntArrayRef stride,
                                     IntArrayRef padding) {
  constexpr auto op = "depthwise_conv_input_grad";
  check_window(op, stride, padding);
  check_images(op, "grad", grad, "(T, N, C, Ho, Wo)");
  check_weight(op, weight, "grad", grad);
  check_output_size(op, input_size, weight.sym_sizes().slice(3), grad.sym_sizes().slice(3), stride,
                    padding);
}

void check_depthwise_conv_weight_grad(const Tensor& grad, const Tensor& x,
                                      const AnySizes& kernel_size, IntArrayRef stride,
                                      IntArrayRef padding) {
  constexpr auto op = "depthwise_conv_weight_grad";
  check_window(op, stride, padding);
  check_images(op, "grad", grad, "(T, N, C, Ho, Wo)");
  check_rank(op, "x", x, 5, "(T, N, C, H, W)");
  check_same_kind(op, "x", x, "grad", grad);
  check_size(op, "x", x, 0, grad.sym_size(0), "T");
  check_size(op, "x", x, 1, grad.sym_size(1), "N");
  check_size(op, "x", x, 2, grad.sym_size(2), "C");
  check_output_size(op, x.sym_sizes().slice(3), kernel_size, grad.sym_sizes().slice(3), stride,
                    padding);
}

}  // namespace metasparse
