#include "task_linear.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "../checks/task_linear.h"

namespace metasparse::dense {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

Tensor task_linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  check_task_linear(x, weight, bias);
  if (!bias.has_value()) return at::bmm(x, weight.mT());
  return at::baddbmm(bias->unsqueeze(1), x, weight.mT());
}

Tensor task_linear_pair(const Tensor& x1, const Tensor& weight1, const Tensor& x2,
                        const Tensor& weight2, const OptionalTensor& bias) {
  check_task_linear_pair(x1, weight1, x2, weight2, bias);
  return at::baddbmm(task_linear(x1, weight1, bias), x2, weight2.mT());
}

std::tuple<Tensor, Tensor, Tensor> task_linear_backward(const Tensor& grad, const Tensor& x,
                                                        const Tensor& weight) {
  check_task_linear_backward(grad, x, weight);
  return {at::bmm(grad, weight), at::bmm(grad.mT(), x), grad.sum(1)};
}

}  // namespace metasparse::dense

TORCH_LIBRARY_FRAGMENT(metasparse_dense, m) {
  m.def("task_linear", metasparse::dense::task_linear);
  m.def("task_linear_pair", metasparse::dense::task_linear_pair);
  m.def("task_linear_backward", metasparse::dense::task_linear_backward);
}

// The CPU has no way of its own: a product of matrices is PyTorch's best case.
TORCH_LIBRARY_IMPL(metasparse, CPU, m) {
  m.impl("task_linear", metasparse::dense::task_linear);
  m.impl("task_linear_pair", metasparse::dense::task_linear_pair);
  m.impl("task_linear_backward", metasparse::dense::task_linear_backward);
}
