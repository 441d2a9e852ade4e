// The three operations of conv.h: fold shared tasks, plan the algorithm, run the plan.
#include "conv.h"

#include <algorithm>
#include <stdexcept>

#include "plan.h"

namespace metasparse::cpu {

namespace {

template <class T>
bool shared(const PerTask<T>& operand) {
  return operand.data == nullptr || operand.task_stride == 0;
}

// Tasks that share weights and mask are one task with more samples, when their images, of
// `image_size` values, lie one after the other.
template <class T>
ConvShape fold_tasks(ConvShape shape, std::vector<SpmmTerm<T>>& terms, int64_t image_size,
                     PerTask<const T> bias) {
  const int64_t task_size = shape.samples * image_size;
  const bool folds =
      shared(bias) && std::all_of(terms.begin(), terms.end(), [&](const auto& t) {
        return shared(t.weight) && shared(t.mask) && t.source.task_stride == task_size;
      });
  if (folds) {
    shape.samples *= shape.tasks;
    shape.tasks = 1;
    for (auto& term : terms) term.source.task_stride = 0;
  }
  return shape;
}

}  // namespace

template <class T>
ConvPlan<T> make_plan(ConvOp op, const ConvShape& shape, ConvAlgorithm algorithm) {
  switch (algorithm.kind) {
    case ConvKind::direct:
      return plan_direct<T>(op, shape);
    case ConvKind::winograd:
      return plan_winograd<T>(op, shape, algorithm.tile);
    case ConvKind::polyphase:
      return plan_polyphase<T>(op, shape, algorithm.tile);
    default:
      throw std::logic_error(algorithm_name(algorithm) + " does not work on tiles");
  }
}

template <class T>
void masked_conv_forward(const ConvShape& original, const std::vector<SpmmTerm<T>>& terms,
                         PerTask<const T> bias, T* y, ConvAlgorithm algorithm) {
  SpmmOperands<T> operands;
  operands.terms = terms;
  const int64_t image = original.in_channels * original.height * original.width;
  const ConvShape s = fold_tasks(original, operands.terms, image, bias);
  operands.tasks = s.tasks;
  operands.out_channels = s.out_channels;
  operands.in_channels = s.in_channels;
  operands.kernel_size = s.kernel_h * s.kernel_w;
  operands.bias = bias;
  operands.output = {y, s.samples * s.out_channels * s.out_height * s.out_width};
  operands.transposed = false;
  if (algorithm.kind == ConvKind::few_channels) return few_channels_forward<T>(s, operands);
  run_spmm<T>(make_plan<T>(ConvOp::forward, s, algorithm), operands);
}

template <class T>
void masked_conv_input_grad(const ConvShape& original, const std::vector<SpmmTerm<T>>& terms,
                            T* grad_x, ConvAlgorithm algorithm) {
  SpmmOperands<T> operands;
  operands.terms = terms;
  const int64_t image = original.out_channels * original.out_height * original.out_width;
  const ConvShape s = fold_tasks(original, operands.terms, image, PerTask<const T>{});
  operands.tasks = s.tasks;
  operands.out_channels = s.out_channels;
  operands.in_channels = s.in_channels;
  operands.kernel_size = s.kernel_h * s.kernel_w;
  operands.output = {grad_x, s.samples * s.in_channels * s.height * s.width};
  operands.transposed = true;
  run_spmm<T>(make_plan<T>(ConvOp::input_grad, s, algorithm), operands);
}

template <class T>
void masked_conv_weight_grad(const ConvShape& s, const std::vector<SddmmTerm<T>>& terms,
                             PerTask<const T> mask, PerTask<T> grad_weight,
                             ConvAlgorithm algorithm) {
  const SddmmOperands<T> operands = {
      s.tasks, s.out_channels, s.in_channels, s.kernel_h * s.kernel_w, terms, mask, grad_weight};
  if (algorithm.kind == ConvKind::few_channels) return few_channels_weight_grad<T>(s, operands);
  run_sddmm<T>(make_plan<T>(ConvOp::weight_grad, s, algorithm), operands);
}

template void masked_conv_forward(const ConvShape&, const std::vector<SpmmTerm<float>>&,
                                  PerTask<const float>, float*, ConvAlgorithm);
template void masked_conv_input_grad(const ConvShape&, const std::vector<SpmmTerm<float>>&, float*,
                                     ConvAlgorithm);
template void masked_conv_weight_grad(const ConvShape&, const std::vector<SddmmTerm<float>>&,
                                      PerTask<const float>, PerTask<float>, ConvAlgorithm);
template void masked_conv_forward(const ConvShape&, const std::vector<SpmmTerm<double>>&,
                                  PerTask<const double>, double*, ConvAlgorithm);
template void masked_conv_input_grad(const ConvShape&, const std::vector<SpmmTerm<double>>&,
                                     double*, ConvAlgorithm);
template void masked_conv_weight_grad(const ConvShape&, const std::vector<SddmmTerm<double>>&,
                                      PerTask<const double>, PerTask<double>, ConvAlgorithm);

}  // namespace metasparse::cpu
