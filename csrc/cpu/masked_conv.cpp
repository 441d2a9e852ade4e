// The masked convolution family on the CPU.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "../dense/masked_conv.h"

TORCH_LIBRARY_IMPL(metasparse, CPU, m) {
  m.impl("masked_conv", metasparse::dense::masked_conv);
  m.impl("masked_conv_input_grad", metasparse::dense::masked_conv_input_grad);
  m.impl("masked_conv_weight_grad", metasparse::dense::masked_conv_weight_grad);
  m.impl("masked_conv_mask_grad", metasparse::dense::masked_conv_mask_grad);
}
