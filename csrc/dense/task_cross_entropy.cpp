#include "task_cross_entropy.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <limits>

#include "../checks/task_cross_entropy.h"

namespace metasparse::dense {
namespace {

using at::Tensor;

// (T,N,C): 1 at the label of each sample, 0 elsewhere; all NaN where the label is no class.
Tensor one_hot(const Tensor& logits, const Tensor& labels) {
  const auto classes = at::arange(logits.size(2), labels.options());
  const auto chosen = labels.unsqueeze(-1) == classes;
  const auto known = chosen.any(-1, /*keepdim=*/true);
  const auto nan = at::full({}, std::numeric_limits<double>::quiet_NaN(), logits.options());
  return at::where(known, chosen.to(logits.scalar_type()), nan);
}

}  // namespace

Tensor task_cross_entropy(const Tensor& logits, const Tensor& labels) {
  check_task_cross_entropy(logits, labels);
  const auto hot = one_hot(logits, labels);
  // where, not a product: a class of no probability has the logarithm -inf
  const auto zero = at::zeros({}, logits.options());
  const auto chosen = at::where(hot == 0, zero, at::log_softmax(logits, -1) * hot);
  return -chosen.sum(-1).mean(-1);
}

Tensor task_cross_entropy_backward(const Tensor& grad, const Tensor& logits, const Tensor& labels) {
  check_task_cross_entropy_backward(grad, logits, labels);
  const auto each = (grad / logits.size(1)).unsqueeze(-1).unsqueeze(-1);
  return each * (logits.softmax(-1) - one_hot(logits, labels));
}

std::tuple<Tensor, Tensor> task_cross_entropy_double_backward(const Tensor& direction,
                                                              const Tensor& grad,
                                                              const Tensor& logits,
                                                              const Tensor& labels) {
  check_task_cross_entropy_double_backward(direction, grad, logits, labels);
  const auto p = logits.softmax(-1);
  const auto each = (grad / logits.size(1)).unsqueeze(-1).unsqueeze(-1);
  const auto grad_dot = (direction * (p - one_hot(logits, labels))).sum({-2, -1}) / logits.size(1);
  const auto average = (p * direction).sum(-1, /*keepdim=*/true);
  return {grad_dot, each * p * (direction - average)};
}

}  // namespace metasparse::dense

TORCH_LIBRARY_FRAGMENT(metasparse_dense, m) {
  m.def("task_cross_entropy", metasparse::dense::task_cross_entropy);
  m.def("task_cross_entropy_backward", metasparse::dense::task_cross_entropy_backward);
  m.def("task_cross_entropy_double_backward",
        metasparse::dense::task_cross_entropy_double_backward);
}
