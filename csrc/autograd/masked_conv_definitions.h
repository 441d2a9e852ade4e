#pragma once
// What each op of the masked convolution family computes, as partials of L.
#include <algorithm>
#include <array>
#include <vector>

#include "masked_conv_partials.h"

namespace metasparse::conv_autograd {

constexpr int kAbsent = -1;

// A partial that is added to an output, taken in slot `own` with these arguments of the op in the
// other slots.
struct Term {
  Slot own;
  int output;
  std::array<int, 4> argument;

  bool reads(int wanted) const {
    return std::find(argument.begin(), argument.end(), wanted) != argument.end();
  }
};

struct Definition {
  const char* node_name;
  int arguments, outputs;
  std::vector<Term> terms;
  int bias = kAbsent;         // the argument that is added to output 0
  int bias_output = kAbsent;  // the output that is the sum of argument 0 over samples and pixels
};

const Definition& forward_definition();
const Definition& input_grad_definition();
const Definition& weight_grad_definition();
const Definition& mask_grad_definition();
const Definition& pair_definition();
const Definition& input_grad_pair_definition();
const Definition& weight_grad_pair_definition();

// Of masked_conv_backward, by the gradients that are wanted; the weight's is dense or masked.
Definition backward_definition(bool input_wanted, bool dense, bool bias_wanted);

// The slots of a term, from a value for each argument.
Slots slots_of(const Term& term, const std::vector<Tensor>& arguments);

}  // namespace metasparse::conv_autograd
