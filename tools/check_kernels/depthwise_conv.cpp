// Depthwise convolutions of one plane, and their gradients, against loops in double.
#include "../../csrc/cpu/depthwise_plan.h"
#include "check.h"

namespace metasparse::check {

using namespace cpu;

namespace {

const DepthwiseKernels<float>& kernels(float) {
  return METASPARSE_COPY_FOR(active_isa(), depthwise_conv).f32;
}
const DepthwiseKernels<double>& kernels(double) {
  return METASPARSE_COPY_FOR(active_isa(), depthwise_conv).f64;
}

// One axis of a convolution.
struct Extent {
  int64_t size, kernel, stride, padding;
  int64_t outputs() const { return (size + 2 * padding - kernel) / stride + 1; }
};

Extent drawn(Random& random) {
  const int64_t kernel = random.one_in(2) ? 3 : random.whole(1, 7);
  const int64_t padding = random.whole(0, random.one_in(5) ? kernel + 1 : kernel / 2);
  const int64_t least = std::max<int64_t>(1, kernel - 2 * padding);
  return {random.whole(least, random.one_in(3) ? 70 : 14), kernel, random.whole(1, 3), padding};
}

// Calls f(output, input, tap) for all that belong together.
template <class F>
void each_product(const Extent& y, const Extent& x, F f) {
  for (int64_t r = 0; r < y.outputs(); ++r) {
    for (int64_t c = 0; c < x.outputs(); ++c) {
      for (int64_t k = 0; k < y.kernel * x.kernel; ++k) {
        const int64_t row = r * y.stride + k / x.kernel - y.padding;
        const int64_t column = c * x.stride + k % x.kernel - x.padding;
        if (row < 0 || row >= y.size || column < 0 || column >= x.size) continue;
        f(r * x.outputs() + c, row * x.size + column, k);
      }
    }
  }
}

template <class T>
bool run_case(const Extent& y, const Extent& x, bool at_end, unsigned seed) {
  const auto& kernel = kernels(T());
  const std::string name =
      text("depthwise_conv, %d x %d, kernel %d x %d, stride %d %d, padding %d %d, %s", int(y.size),
           int(x.size), int(y.kernel), int(x.kernel), int(y.stride), int(x.stride), int(y.padding),
           int(x.padding), kTypeName<T>);
  Random random(seed);
  const int64_t count = y.kernel * x.kernel, places = y.outputs() * x.outputs();
  const Array<T> image(y.size * x.size, at_end), grad(places, at_end), weight(count, at_end),
      arranged(count, at_end), outputs(places, at_end), image_grad(y.size * x.size, at_end),
      sums(count * kernel.lanes, at_end), weight_grad(count, at_end);
  for (const Array<T>* operand : {&image, &grad, &weight}) {
    operand->fill([&] { return random.normal(); });
  }
  for (const Array<T>* result : {&outputs, &image_grad}) result->poison();
  sums.fill([] { return 0.0; });

  const DepthwisePlan forward(of_images(y.size, y.kernel, y.stride, y.padding, y.outputs()),
                              of_images(x.size, x.kernel, x.stride, x.padding, x.outputs()),
                              kernel.lanes);
  const Array<T> frame(forward.frame.size(), at_end);
  frame.fill([] { return 0.0; });
  kernel.fill(forward.frame, image.data(), frame.data());
  kernel.correlate(forward.taps, frame.data(), weight.data(), outputs.data());
  kernel.accumulate(forward.taps, frame.data(), grad.data(), sums.data());
  for (int64_t k = 0; k < count; ++k) {
    weight_grad[k] = 0;
    for (int64_t l = 0; l < kernel.lanes; ++l) weight_grad[k] += sums[k * kernel.lanes + l];
  }

  if (y.stride == 1 && x.stride == 1) {
    const DepthwisePlan backward(of_gradients(y.outputs(), y.kernel, y.padding, y.size),
                                 of_gradients(x.outputs(), x.kernel, x.padding, x.size),
                                 kernel.lanes);
    const Array<T> zeros(backward.frame.size(), at_end);
    zeros.fill([] { return 0.0; });
    kernel.fill(backward.frame, grad.data(), zeros.data());
    for (int64_t k = 0; k < count; ++k) arranged[k] = weight[count - 1 - k];
    kernel.correlate(backward.taps, zeros.data(), arranged.data(), image_grad.data());
  } else {
    const StridedGradientPlan backward({y.outputs(), y.kernel, y.stride, y.padding, y.size},
                                       {x.outputs(), x.kernel, x.stride, x.padding, x.size},
                                       kernel.lanes);
    const Array<T> zeros(backward.frame.size(), at_end);
    zeros.fill([] { return 0.0; });
    kernel.fill(backward.frame, grad.data(), zeros.data());
    for (int64_t k = 0; k < count; ++k) arranged[k] = weight[backward.order[k]];
    kernel.correlate_classes(backward.classes, zeros.data(), arranged.data(), image_grad.data());
  }

  std::vector<double> y_values(places), x_values(y.size * x.size), w_values(count);
  each_product(y, x, [&](int64_t place, int64_t pixel, int64_t k) {
    y_values[place] += double(image[pixel]) * weight[k];
    x_values[pixel] += double(grad[place]) * weight[k];
    w_values[k] += double(grad[place]) * image[pixel];
  });
  bool good = close("outputs", name, outputs, y_values, kBound<T>, 1);
  good &= close("image gradient", name, image_grad, x_values, kBound<T>, 1);
  good &= close("weight gradient", name, weight_grad, w_values, kBound<T>, 1);
  return good;
}

}  // namespace

static Count run(int draws, unsigned seed) {
  Random random(seed);
  Count count;
  for (int draw = 0; draw < draws; ++draw) {
    const Extent y = drawn(random), x = drawn(random);
    for (const bool at_end : {false, true}) {
      count.add(run_case<float>(y, x, at_end, seed));
      count.add(run_case<double>(y, x, at_end, seed));
    }
  }
  return count;
}

static const Op op("depthwise_conv", run);

}  // namespace metasparse::check
