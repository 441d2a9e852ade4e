#pragma once
// Forward mode of the masked convolution family.
#include <vector>

#include "masked_conv_definitions.h"

namespace metasparse::conv_autograd {

// The tangent of an output whose value is given; undefined where no argument has one.
Tensor tangent(const Definition& definition, int output, const std::vector<Tensor>& arguments,
               const Tensor& value, const Geometry& geo);

}  // namespace metasparse::conv_autograd
