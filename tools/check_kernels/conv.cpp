// The masked convolution: every algorithm through its driver, against the definition.
#include "conv.h"

#include "../../csrc/cpu/conv/conv.h"

namespace metasparse::check {

using namespace cpu;

namespace {

struct Result {
  std::vector<double> y, grad_x, grad_w;
};

// The definition, term by term.
template <class T>
Result naive(const ConvShape& s, const Array<T>& x, const Array<T>& w, const Array<T>& m,
             const Array<T>& bias, const Array<T>& g) {
  Result r;
  r.y.resize(static_cast<size_t>(g.size()));
  r.grad_x.resize(static_cast<size_t>(x.size()));
  r.grad_w.resize(static_cast<size_t>(w.size()));
  for (int64_t e = 0; e < g.size(); ++e) {
    const int64_t c = e % s.out_width, row = e / s.out_width % s.out_height;
    const int64_t o = e / (s.out_width * s.out_height) % s.out_channels;
    const int64_t n = e / (s.out_width * s.out_height * s.out_channels);
    const int64_t t = n / s.samples;
    r.y[e] = bias[t * s.out_channels + o];
    for (int64_t i = 0; i < s.in_channels; ++i) {
      const int64_t kernel = (t * s.out_channels + o) * s.in_channels + i;
      if (m[kernel] == T(0)) continue;
      for (int64_t k = 0; k < s.kernel_h * s.kernel_w; ++k) {
        const int64_t h = row * s.stride_h - s.pad_h + k / s.kernel_w;
        const int64_t v = c * s.stride_w - s.pad_w + k % s.kernel_w;
        if (h < 0 || h >= s.height || v < 0 || v >= s.width) continue;
        const int64_t from = ((n * s.in_channels + i) * s.height + h) * s.width + v;
        const int64_t weight = kernel * s.kernel_h * s.kernel_w + k;
        const double effective = static_cast<double>(w[weight]) * m[kernel];
        r.y[e] += effective * x[from];
        r.grad_x[from] += effective * g[e];
        r.grad_w[weight] += static_cast<double>(g[e]) * x[from] * m[kernel];
      }
    }
  }
  return r;
}

Result sum(Result a, const Result& b) {
  const auto add = [](std::vector<double>& to, const std::vector<double>& from) {
    for (size_t e = 0; e < to.size(); ++e) to[e] += from[e];
  };
  add(a.y, b.y);
  add(a.grad_x, b.grad_x);
  add(a.grad_w, b.grad_w);
  return a;
}

template <class T>
std::string describe(const ConvShape& s, ConvAlgorithm algorithm) {
  return text("%s, T=%d N=%d %d>%d %dx%d kernel %dx%d stride %dx%d padding %dx%d, %s",
              algorithm_name(algorithm).c_str(), int(s.tasks), int(s.samples), int(s.in_channels),
              int(s.out_channels), int(s.height), int(s.width), int(s.kernel_h), int(s.kernel_w),
              int(s.stride_h), int(s.stride_w), int(s.pad_h), int(s.pad_w), kTypeName<T>);
}

constexpr ConvAlgorithm kAlgorithms[] = {{ConvKind::direct, 0},    {ConvKind::few_channels, 0},
                                         {ConvKind::winograd, 2},  {ConvKind::winograd, 3},
                                         {ConvKind::winograd, 4},  {ConvKind::winograd, 5},
                                         {ConvKind::polyphase, 2}, {ConvKind::polyphase, 3}};

}  // namespace

template <class T>
bool run_conv_case(const ConvShape& s, ConvAlgorithm algorithm, double density, bool at_end,
                   unsigned seed) {
  Random random(seed);
  const int64_t kernels = s.tasks * s.out_channels * s.in_channels;
  const int64_t size = s.kernel_h * s.kernel_w;
  const Array<T> x(s.tasks * s.samples * s.in_channels * s.height * s.width, at_end);
  const Array<T> g(s.tasks * s.samples * s.out_channels * s.out_height * s.out_width, at_end);
  const Array<T> w(kernels * size, at_end), m(kernels, at_end);
  const Array<T> bias(s.tasks * s.out_channels, at_end);
  const Array<T> y(g.size(), at_end), grad_x(x.size(), at_end), grad_w(w.size(), at_end);
  for (const Array<T>* a : {&x, &g, &w, &bias}) a->fill([&] { return random.normal(); });
  m.fill([&] { return random.uniform() < density ? random.uniform() < .5 ? 1.0 : 0.5 : 0.0; });
  for (int64_t e = 0; e < w.size(); ++e) {
    if (m[e / size] == T(0)) w[e] = std::numeric_limits<T>::quiet_NaN();
  }
  for (const Array<T>* a : {&y, &grad_x, &grad_w}) a->poison();

  const auto per_task = [&](const Array<T>& a) {
    return PerTask<const T>{a.data(), a.size() / s.tasks};
  };
  const PerTask<T> grads = {grad_w.data(), grad_w.size() / s.tasks};
  masked_conv_forward<T>(s, {{per_task(x), per_task(w), per_task(m)}}, per_task(bias), y.data(),
                         algorithm);
  const bool has_input_grad = unsupported(algorithm, ConvOp::input_grad, s) == nullptr;
  if (has_input_grad) {
    masked_conv_input_grad<T>(s, {{per_task(g), per_task(w), per_task(m)}}, grad_x.data(),
                              algorithm);
  }
  masked_conv_weight_grad<T>(s, {{per_task(g), per_task(x)}}, per_task(m), grads, algorithm);
  const Result expected = naive(s, x, w, m, bias, g);

  const std::string name = describe<T>(s, algorithm);
  const double bound = kBound<T>;
  bool good = close("forward", name, y, expected.y, bound);
  if (has_input_grad) good &= close("input gradient", name, grad_x, expected.grad_x, bound);
  good &= close("weight gradient", name, grad_w, expected.grad_w, bound);

  // Sums of two: the same images under two masks, and the same pairs of images twice.
  const Array<T> other(kernels, at_end), nothing(bias.size(), at_end);
  for (int64_t k = 0; k < kernels; ++k) other[k] = m[k] == T(0) ? T(0) : T(m[k] + 1);
  nothing.fill([] { return 0.0; });
  for (const Array<T>* a : {&y, &grad_x, &grad_w}) a->poison();
  const auto terms = [&](const Array<T>& source) {
    return std::vector<SpmmTerm<T>>{{per_task(source), per_task(w), per_task(m)},
                                    {per_task(source), per_task(w), per_task(other)}};
  };
  masked_conv_forward<T>(s, terms(x), per_task(bias), y.data(), algorithm);
  if (has_input_grad) masked_conv_input_grad<T>(s, terms(g), grad_x.data(), algorithm);
  masked_conv_weight_grad<T>(s, {{per_task(g), per_task(x)}, {per_task(g), per_task(x)}},
                             per_task(m), grads, algorithm);
  const Result both = sum(expected, naive(s, x, w, other, nothing, g));
  good &= close("forward of two", name, y, both.y, bound);
  if (has_input_grad) good &= close("input gradient of two", name, grad_x, both.grad_x, bound);
  good &= close("weight gradient of two", name, grad_w, sum(expected, expected).grad_w, bound);

  m.fill([] { return 1.0; });
  for (int64_t e = 0; e < w.size(); ++e) w[e] = T(0);
  grad_w.poison();
  masked_conv_weight_grad<T>(s, {{per_task(g), per_task(x)}}, {}, grads, algorithm);
  return good &
         close("dense weight gradient", name, grad_w, naive(s, x, w, m, bias, g).grad_w, bound);
}

template bool run_conv_case<float>(const ConvShape&, ConvAlgorithm, double, bool, unsigned);
template bool run_conv_case<double>(const ConvShape&, ConvAlgorithm, double, bool, unsigned);

ConvShape conv_shape(int64_t t, int64_t n, int64_t i, int64_t o, int64_t h, int64_t w, int64_t kh,
                     int64_t kw, int64_t sh, int64_t sw, int64_t ph, int64_t pw) {
  return {t,  n,  i,  o,  h,  w, (h + 2 * ph - kh) / sh + 1, (w + 2 * pw - kw) / sw + 1,
          kh, kw, sh, sw, ph, pw};
}

// Shapes beyond any list: channels past a register and a block, maps from one pixel, kernels up to
// 7, strides up to 4 and paddings up to 6, in each direction its own.
ConvShape drawn_conv_shape(Random& random) {
  const auto draw = [&](int64_t least, int64_t most) { return random.whole(least, most); };
  const auto channels = [&] { return draw(0, 3) == 0 ? draw(1, 70) : draw(1, 9); };
  while (true) {
    const bool square = draw(0, 2) == 0;  // what Winograd and polyphase take comes often
    const int64_t kh = square ? 3 : draw(1, 7), kw = square ? 3 : draw(1, 7);
    const int64_t sh = draw(1, square ? 2 : 4), sw = square ? sh : draw(1, 4);
    const int64_t ph = square ? draw(0, 2) : draw(0, 6), pw = square ? ph : draw(0, 6);
    const ConvShape s = conv_shape(draw(1, 3), draw(1, 5), channels(), channels(), draw(1, 20),
                                   draw(1, 20), kh, kw, sh, sw, ph, pw);
    const bool some_output = s.height + 2 * ph >= kh && s.width + 2 * pw >= kw;
    const int64_t work =
        s.tasks * s.samples * s.in_channels * s.out_channels * s.out_height * s.out_width * kh * kw;
    if (some_output && work < 4'000'000) return s;
  }
}

void run_conv_shape(const ConvShape& s, unsigned seed, Count& count) {
  for (const ConvAlgorithm algorithm : kAlgorithms) {
    if (unsupported(algorithm, ConvOp::forward, s) != nullptr) continue;
    for (const double density : {1.0, 0.5, 0.0}) {
      for (const bool at_end : {true, false}) {
        count.add(run_conv_case<float>(s, algorithm, density, at_end, seed));
        count.add(run_conv_case<double>(s, algorithm, density, at_end, seed));
      }
    }
  }
}

const std::vector<ConvShape>& listed_conv_shapes() {
  static const std::vector<ConvShape> shapes = {
      conv_shape(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0),
      conv_shape(2, 3, 5, 7, 9, 11, 3, 3, 1, 1, 1, 1),
      conv_shape(1, 1, 1, 1, 1, 1, 3, 3, 1, 1, 1, 1),
      conv_shape(3, 2, 3, 2, 2, 5, 3, 3, 1, 1, 1, 1),
      conv_shape(1, 2, 3, 4, 9, 8, 3, 3, 1, 1, 0, 2),
      conv_shape(1, 1, 2, 3, 37, 23, 3, 3, 1, 1, 1, 1),
      conv_shape(1, 3, 2, 67, 5, 5, 3, 3, 1, 1, 1, 1),
      conv_shape(2, 3, 2, 5, 7, 7, 3, 3, 2, 2, 1, 1),
      conv_shape(1, 1, 3, 2, 1, 1, 3, 3, 2, 2, 1, 1),
      conv_shape(1, 2, 3, 2, 2, 1, 3, 3, 2, 2, 1, 1),
      conv_shape(2, 5, 3, 3, 4, 4, 3, 3, 2, 2, 1, 1),
      conv_shape(1, 1, 2, 3, 38, 41, 3, 3, 2, 2, 1, 1),
      conv_shape(1, 2, 4, 3, 13, 10, 5, 2, 3, 1, 2, 0),
      conv_shape(2, 2, 3, 2, 6, 17, 2, 5, 1, 3, 0, 2),
      conv_shape(2, 2, 3, 2, 6, 7, 1, 1, 3, 2, 1, 1),
      conv_shape(1, 4, 16, 12, 9, 9, 2, 2, 2, 2, 0, 0),
      conv_shape(1, 1, 4, 4, 9, 6, 3, 3, 3, 3, 1, 1),
  };
  return shapes;
}

static Count run(int draws, unsigned seed) {
  Count count;
  for (const ConvShape& s : listed_conv_shapes()) run_conv_shape(s, 1, count);
  Random random(seed);
  for (int draw = 0; draw < draws; ++draw) run_conv_shape(drawn_conv_shape(random), 1, count);
  return count;
}

static const Op op("conv", run);

}  // namespace metasparse::check
