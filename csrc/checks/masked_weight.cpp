#include "masked_weight.h"

#include "common.h"

namespace metasparse {
namespace {

void check_mask(const char* op, const char* name, const at::Tensor& mask, const at::Tensor& weight,
                const char* weight_name) {
  check_rank(op, name, mask, 3, "(T, O, I)");
  for (int64_t dim = 0; dim < 3; ++dim) {
    check_size(op, name, mask, dim, weight.sym_size(dim), "that of the weight");
  }
  check_same_kind(op, name, mask, weight_name, weight);
}

void check_weight(const char* op, const char* name, const at::Tensor& weight) {
  check_rank(op, name, weight, 5, "(T, O, I, kh, kw)");
  check_floating(op, name, weight);
}

}  // namespace

void check_masked_weight_pair(const at::Tensor& weight1, const at::Tensor& mask1,
                              const at::Tensor& weight2, const at::Tensor& mask2) {
  constexpr auto op = "masked_weight_pair";
  check_weight(op, "weight1", weight1);
  check_mask(op, "mask1", mask1, weight1, "weight1");
  check_shape_like(op, "weight2", weight2, "weight1", weight1);
  check_same_kind(op, "weight2", weight2, "weight1", weight1);
  check_mask(op, "mask2", mask2, weight1, "weight1");
}

void check_masked_weight_backward(const at::Tensor& grad, const at::Tensor& weight,
                                  const at::Tensor& mask) {
  constexpr auto op = "masked_weight_backward";
  check_weight(op, "grad", grad);
  check_shape_like(op, "weight", weight, "grad", grad);
  check_same_kind(op, "weight", weight, "grad", grad);
  check_mask(op, "mask", mask, grad, "grad");
}

}  // namespace metasparse
