// The three operations of masked_conv.h: fold shared tasks, choose the scheme, run the engine.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "conv_direct.h"
#include "conv_engine.h"
#include "conv_narrow.h"
#include "conv_polyphase.h"
#include "conv_winograd.h"
#include "masked_conv.h"

namespace metasparse::cpu {

namespace {

template <class T>
bool shared(const PerTask<T>& operand) {
  return operand.data == nullptr || operand.task_stride == 0;
}

// Tasks that share weights and mask are one task with more samples, when their images, of
// `image_size` values, lie one after the other.
template <class T>
ConvShape fold_tasks(ConvShape shape, std::vector<ProductTerm<T>>& terms, int64_t image_size,
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

[[noreturn]] void refuse(Backend backend) {
  throw std::invalid_argument(std::string("convolution backend ") + backend_name(backend) +
                              " is not one of the CPU kernels");
}

template <class T>
ConvScheme<T> forward_scheme(const ConvShape& shape, Backend backend) {
  switch (backend) {
    case Backend::direct:
      return direct_forward<T>(shape);
    case Backend::winograd2:
    case Backend::winograd3:
    case Backend::winograd4:
    case Backend::winograd5:
      return winograd_forward<T>(shape, winograd_tile(backend));
    case Backend::polyphase2:
    case Backend::polyphase3:
      return polyphase_forward<T>(shape, polyphase_tile(backend));
    default:
      refuse(backend);
  }
}

template <class T>
ConvScheme<T> input_grad_scheme(const ConvShape& shape, Backend backend) {
  switch (backend) {
    case Backend::direct:
    case Backend::narrow:
      return direct_input_grad<T>(shape);
    case Backend::winograd2:
    case Backend::winograd3:
    case Backend::winograd4:
    case Backend::winograd5:
      return winograd_input_grad<T>(shape, winograd_tile(backend));
    case Backend::polyphase2:
    case Backend::polyphase3:
      return polyphase_input_grad<T>(shape, polyphase_tile(backend));
    default:
      refuse(backend);
  }
}

template <class T>
ConvScheme<T> weight_grad_scheme(const ConvShape& shape, Backend backend) {
  switch (backend) {
    case Backend::direct:
      return direct_weight_grad<T>(shape);
    case Backend::winograd2:
    case Backend::winograd3:
    case Backend::winograd4:
    case Backend::winograd5:
      return winograd_weight_grad<T>(shape, winograd_tile(backend));
    case Backend::polyphase2:
    case Backend::polyphase3:
      return polyphase_weight_grad<T>(shape, polyphase_tile(backend));
    default:
      refuse(backend);
  }
}

}  // namespace

template <class T>
void masked_conv_forward(const ConvShape& original, const std::vector<ProductTerm<T>>& terms,
                         PerTask<const T> bias, T* y, Backend backend) {
  ProductOperands<T> operands;
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
  if (backend == Backend::narrow) return run_narrow_forward<T>(s, operands);
  run_product<T>(forward_scheme<T>(s, backend), operands);
}

template <class T>
void masked_conv_input_grad(const ConvShape& original, const std::vector<ProductTerm<T>>& terms,
                            T* grad_x, Backend backend) {
  ProductOperands<T> operands;
  operands.terms = terms;
  const int64_t image = original.out_channels * original.out_height * original.out_width;
  const ConvShape s = fold_tasks(original, operands.terms, image, PerTask<const T>{});
  operands.tasks = s.tasks;
  operands.out_channels = s.out_channels;
  operands.in_channels = s.in_channels;
  operands.kernel_size = s.kernel_h * s.kernel_w;
  operands.output = {grad_x, s.samples * s.in_channels * s.height * s.width};
  operands.transposed = true;
  run_product<T>(input_grad_scheme<T>(s, backend), operands);
}

template <class T>
void masked_conv_weight_grad(const ConvShape& s, const std::vector<SampledTerm<T>>& terms,
                             PerTask<const T> mask, T* grad_weight, Backend backend) {
  const SampledOperands<T> operands = {
      s.tasks, s.out_channels, s.in_channels, s.kernel_h * s.kernel_w, terms, mask, grad_weight};
  if (backend == Backend::narrow) return run_narrow_weight_grad<T>(s, operands);
  run_sampled<T>(weight_grad_scheme<T>(s, backend), operands);
}

template void masked_conv_forward(const ConvShape&, const std::vector<ProductTerm<float>>&,
                                  PerTask<const float>, float*, Backend);
template void masked_conv_input_grad(const ConvShape&, const std::vector<ProductTerm<float>>&,
                                     float*, Backend);
template void masked_conv_weight_grad(const ConvShape&, const std::vector<SampledTerm<float>>&,
                                      PerTask<const float>, float*, Backend);
template void masked_conv_forward(const ConvShape&, const std::vector<ProductTerm<double>>&,
                                  PerTask<const double>, double*, Backend);
template void masked_conv_input_grad(const ConvShape&, const std::vector<ProductTerm<double>>&,
                                     double*, Backend);
template void masked_conv_weight_grad(const ConvShape&, const std::vector<SampledTerm<double>>&,
                                      PerTask<const double>, double*, Backend);

}  // namespace metasparse::cpu
