#include "window.h"

#include "common.h"

namespace metasparse {

using at::IntArrayRef;
using at::Tensor;
using c10::SymInt;
using c10::SymIntArrayRef;

void check_window(const char* op, IntArrayRef stride, IntArrayRef padding) {
  TORCH_CHECK_VALUE(stride.size() == 2 && stride[0] > 0 && stride[1] > 0, op,
                    ": expected stride to be two positive integers, got ", stride);
  TORCH_CHECK_VALUE(padding.size() == 2 && padding[0] >= 0 && padding[1] >= 0, op,
                    ": expected padding to be two integers >= 0, got ", padding);
}

void check_images(const char* op, const char* name, const Tensor& t, const char* letters) {
  check_rank(op, name, t, 5, letters);
  check_floating(op, name, t);
}

void check_fit(const char* op, SymIntArrayRef input, SymIntArrayRef kernel, IntArrayRef padding) {
  for (int d = 0; d < 2; ++d) {
    TORCH_CHECK_VALUE(kernel[d] > 0 && input[d] + 2 * padding[d] >= kernel[d], op, ": a kernel of ",
                      kernel, " does not fit an input of ", input, " padded by ", padding);
  }
}

void check_output_size(const char* op, SymIntArrayRef input, SymIntArrayRef kernel,
                       SymIntArrayRef output, IntArrayRef stride, IntArrayRef padding) {
  check_fit(op, input, kernel, padding);
  for (int d = 0; d < 2; ++d) {
    const auto expected = conv_out_size<SymInt>(input[d], kernel[d], stride[d], padding[d]);
    TORCH_CHECK_VALUE(output[d] == expected, op, ": expected grad.size(", d + 3, ") = ", expected,
                      " for an input of ", input, ", a kernel of ", kernel, ", stride ", stride,
                      " and padding ", padding, ", got ", output[d]);
  }
}

}  // namespace metasparse
