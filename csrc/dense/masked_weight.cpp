#include "masked_weight.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "../checks/masked_weight.h"

namespace metasparse::dense {

using at::Tensor;

Tensor over_taps(const Tensor& mask) { return mask.unsqueeze(-1).unsqueeze(-1); }

Tensor masked_weight_pair(const Tensor& weight1, const Tensor& mask1, const Tensor& weight2,
                          const Tensor& mask2) {
  check_masked_weight_pair(weight1, mask1, weight2, mask2);
  return weight1 * over_taps(mask1) + weight2 * over_taps(mask2);
}

std::tuple<Tensor, Tensor> masked_weight_backward(const Tensor& grad, const Tensor& weight,
                                                  const Tensor& mask) {
  check_masked_weight_backward(grad, weight, mask);
  return {grad * over_taps(mask), (grad * weight).sum({-2, -1})};
}

}  // namespace metasparse::dense

TORCH_LIBRARY_FRAGMENT(metasparse_dense, m) {
  m.def("masked_weight_pair", metasparse::dense::masked_weight_pair);
  m.def("masked_weight_backward", metasparse::dense::masked_weight_backward);
}
