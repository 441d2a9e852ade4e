// The three operations of masked_conv.h: fold shared tasks, choose the scheme, run the engine.
#include <stdexcept>
#include <string>

#include "conv_direct.h"
#include "conv_engine.h"
#include "conv_polyphase.h"
#include "conv_winograd.h"
#include "masked_conv.h"

namespace metasparse::cpu {

namespace {

// Tasks that share weights and mask are one task with more samples, when their images lie one after
// the other.
template <class T>
ConvShape fold_tasks(ConvShape shape, PerTask<const T>& images, int64_t image_size,
                     PerTask<const T> weight, PerTask<const T> mask, PerTask<const T> bias) {
  const bool shared = weight.task_stride == 0 && (mask.data == nullptr || mask.task_stride == 0) &&
                      (bias.data == nullptr || bias.task_stride == 0);
  if (shared && images.task_stride == shape.samples * image_size) {
    shape.samples *= shape.tasks;
    shape.tasks = 1;
    images.task_stride = 0;
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
void masked_conv_forward(const ConvShape& original, PerTask<const T> x, PerTask<const T> weight,
                         PerTask<const T> mask, PerTask<const T> bias, T* y, Backend backend) {
  const int64_t image = original.in_channels * original.height * original.width;
  const ConvShape s = fold_tasks(original, x, image, weight, mask, bias);
  const int64_t task = s.samples * s.out_channels * s.out_height * s.out_width;
  run_product<T>(forward_scheme<T>(s, backend), {s.tasks,
                                                 s.out_channels,
                                                 s.in_channels,
                                                 s.kernel_h * s.kernel_w,
                                                 x,
                                                 weight,
                                                 mask,
                                                 bias,
                                                 {y, task},
                                                 false});
}

template <class T>
void masked_conv_input_grad(const ConvShape& original, PerTask<const T> grad,
                            PerTask<const T> weight, PerTask<const T> mask, T* grad_x,
                            Backend backend) {
  const int64_t image = original.out_channels * original.out_height * original.out_width;
  const ConvShape s = fold_tasks(original, grad, image, weight, mask, PerTask<const T>{});
  const int64_t task = s.samples * s.in_channels * s.height * s.width;
  run_product<T>(input_grad_scheme<T>(s, backend), {s.tasks,
                                                    s.out_channels,
                                                    s.in_channels,
                                                    s.kernel_h * s.kernel_w,
                                                    grad,
                                                    weight,
                                                    mask,
                                                    PerTask<const T>{},
                                                    {grad_x, task},
                                                    true});
}

template <class T>
void masked_conv_weight_grad(const ConvShape& s, PerTask<const T> grad, PerTask<const T> x,
                             PerTask<const T> mask, T* grad_weight, Backend backend) {
  run_sampled<T>(weight_grad_scheme<T>(s, backend),
                 {s.tasks, s.out_channels, s.in_channels, s.kernel_h * s.kernel_w, grad, x, mask,
                  grad_weight});
}

template void masked_conv_forward(const ConvShape&, PerTask<const float>, PerTask<const float>,
                                  PerTask<const float>, PerTask<const float>, float*, Backend);
template void masked_conv_forward(const ConvShape&, PerTask<const double>, PerTask<const double>,
                                  PerTask<const double>, PerTask<const double>, double*, Backend);
template void masked_conv_input_grad(const ConvShape&, PerTask<const float>, PerTask<const float>,
                                     PerTask<const float>, float*, Backend);
template void masked_conv_input_grad(const ConvShape&, PerTask<const double>, PerTask<const double>,
                                     PerTask<const double>, double*, Backend);
template void masked_conv_weight_grad(const ConvShape&, PerTask<const float>, PerTask<const float>,
                                      PerTask<const float>, float*, Backend);
template void masked_conv_weight_grad(const ConvShape&, PerTask<const double>,
                                      PerTask<const double>, PerTask<const double>, double*,
                                      Backend);

}  // namespace metasparse::cpu
