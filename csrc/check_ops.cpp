// The checks of some ops' arguments as ops themselves, for backends that are chosen and run from
// Python. An op of the same name in metasparse takes the same arguments.
#include <torch/library.h>

#include "masked_conv_checks.h"
#include "norm_act_pool_checks.h"
#include "topk_mask_checks.h"

namespace metasparse {
namespace {

void check_norm_act_pool_op(const at::Tensor& x, const std::optional<at::Tensor>& weight,
                            const std::optional<at::Tensor>& bias, double eps, bool /*relu*/,
                            bool pool, bool /*norm_first*/) {
  check_norm_act_pool(x, weight, bias, eps, pool);
}

}  // namespace
}  // namespace metasparse

TORCH_LIBRARY(metasparse_check, m) {
  m.def("masked_conv", metasparse::check_masked_conv);
  m.def("masked_conv_input_grad", metasparse::check_masked_conv_input_grad);
  m.def("masked_conv_weight_grad", metasparse::check_masked_conv_weight_grad);
  m.def("masked_conv_pair", metasparse::check_masked_conv_pair);
  m.def("masked_conv_input_grad_pair", metasparse::check_masked_conv_input_grad_pair);
  m.def("masked_conv_weight_grad_pair", metasparse::check_masked_conv_weight_grad_pair);
  m.def("norm_act_pool", metasparse::check_norm_act_pool_op);
  m.def("topk_mask", metasparse::check_topk_mask);
}
