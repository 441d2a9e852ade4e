// The channels of all tasks are groups of one convolution.
#include "depthwise_conv.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <array>

#include "../checks/depthwise_conv.h"

namespace metasparse::dense {
namespace {

using at::IntArrayRef;
using at::Tensor;

// (T, N, C, H, W) -> (N, T C, H, W), in the strides of that format alone: those of one channel fit
// channels last, too, where oneDNN 3.12 gives wrong numbers for some strided convolutions.
Tensor side_by_side(const Tensor& images) {
  const Tensor t = images.transpose(0, 1).flatten(1, 2).contiguous();
  return t.view({t.numel()}).view(t.sizes());
}

Tensor by_task(const Tensor& images, int64_t tasks) {
  return images.unflatten(1, {tasks, images.size(1) / tasks}).transpose(0, 1).contiguous();
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& x,
                                            const Tensor& weight, IntArrayRef stride,
                                            IntArrayRef padding, std::array<bool, 3> wanted) {
  return at::convolution_backward(grad, x, weight, std::nullopt, stride, padding, {1, 1}, false,
                                  {0, 0}, weight.size(0), wanted);
}

}  // namespace

Tensor depthwise_conv(const Tensor& x, const Tensor& weight, IntArrayRef stride,
                      IntArrayRef padding) {
  check_depthwise_conv(x, weight, stride, padding);
  const auto kernels = weight.flatten(0, 1);
  return by_task(at::convolution(side_by_side(x), kernels, std::nullopt, stride, padding, {1, 1},
                                 false, {0, 0}, kernels.size(0)),
                 x.size(0));
}

Tensor depthwise_conv_input_grad(const Tensor& grad, const Tensor& weight, IntArrayRef input_size,
                                 IntArrayRef stride, IntArrayRef padding) {
  check_depthwise_conv_input_grad(grad, weight, input_size, stride, padding);
  const auto g = side_by_side(grad);
  const auto like = at::empty({g.size(0), g.size(1), input_size[0], input_size[1]}, g.options());
  return by_task(
      std::get<0>(backward(g, like, weight.flatten(0, 1), stride, padding, {true, false, false})),
      grad.size(0));
}

Tensor depthwise_conv_weight_grad(const Tensor& grad, const Tensor& x, IntArrayRef kernel_size,
                                  IntArrayRef stride, IntArrayRef padding) {
  check_depthwise_conv_weight_grad(grad, x, kernel_size, stride, padding);
  const auto g = side_by_side(grad);
  const auto like = at::empty({g.size(1), 1, kernel_size[0], kernel_size[1]}, g.options());
  const auto found =
      std::get<1>(backward(g, side_by_side(x), like, stride, padding, {false, true, false}));
  return found.unflatten(0, {grad.size(0), grad.size(2)});
}

}  // namespace metasparse::dense

TORCH_LIBRARY_FRAGMENT(metasparse_dense, m) {
  m.def("depthwise_conv", metasparse::dense::depthwise_conv);
  m.def("depthwise_conv_input_grad", metasparse::dense::depthwise_conv_input_grad);
  m.def("depthwise_conv_weight_grad", metasparse::dense::depthwise_conv_weight_grad);
}
