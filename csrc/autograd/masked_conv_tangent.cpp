#include "masked_conv_tangent.h"

#include <algorithm>

#include "node.h"

namespace metasparse::conv_autograd {

// Product rule: the sum over the slots of all terms of an output, with that slot replaced by its
// tangent.
Tensor tangent(const Definition& definition, int output, const std::vector<Tensor>& arguments,
               const Tensor& value, const Geometry& geo) {
  std::vector<Tensor> primal, dot;
  for (const auto& argument : arguments) dot.push_back(tangent_of(argument));
  const auto defined = [](const Tensor& t) { return t.defined(); };
  if (std::none_of(dot.begin(), dot.end(), defined)) return {};
  for (const auto& argument : arguments) primal.push_back(primal_of(argument));
  if (output == definition.bias_output) return dot[0].defined() ? sum_of_pixels(dot[0]) : Tensor();
  Slot own = kGrad;
  std::vector<Slots> terms;
  for (const Term& term : definition.terms) {
    if (term.output != output) continue;
    own = term.own;
    for (int slot = 0; slot < 4; ++slot) {
      const int argument = term.argument[slot];
      if (argument == kAbsent || !dot[argument].defined()) continue;
      terms.push_back(slots_of(term, primal));
      terms.back()[slot] = dot[argument];
    }
  }
  const auto bias = definition.bias == kAbsent ? Tensor() : dot[definition.bias];
  if (terms.empty() && bias.defined()) {
    return over_pixels(bias).expand_symint(value.sym_sizes()).clone();
  }
  return sum_of_partials(own, terms, bias, geo);
}

}  // namespace metasparse::conv_autograd
