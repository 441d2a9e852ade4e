// The block of batch norm, ReLU and max-pool and its derivatives on one channel, against the
// formulas in csrc/autograd/norm_act_pool.cpp.
#include "../../csrc/cpu/kernels/norm/norm_act_pool.h"

#include "check.h"

namespace metasparse::check {

using namespace cpu;

namespace {

const NormActPoolKernels<float>& kernels(float) {
  return METASPARSE_COPY_FOR(active_isa(), norm_act_pool_float);
}
const NormActPoolKernels<double>& kernels(double) {
  return METASPARSE_COPY_FOR(active_isa(), norm_act_pool_double);
}

using Values = std::vector<double>;

struct Layout {
  int64_t channels, channel;  // of the tensor that the channel's planes lie in
  bool shared;                // one plane for all samples, where it is read
  bool whole_numbers;         // values with many ties
  bool at_end;
};

int64_t plane_of_x(const NormActPoolShape& s) { return s.height * s.width; }
int64_t plane_of_y(const NormActPoolShape& s) {
  return s.pool ? s.height / 2 * (s.width / 2) : plane_of_x(s);
}

// One channel of a tensor (N, C, plane): of the others nothing may reach a result, and results
// leave them alone.
template <class T>
class Channel {
 public:
  Channel(const NormActPoolShape& s, int64_t plane, const Layout& layout, bool shared = false)
      : samples_(s.samples),
        plane_(plane),
        stride_(shared ? 0 : layout.channels * plane),
        first_(layout.channel * plane),
        memory_((shared ? 1 : s.samples) * layout.channels * plane, layout.at_end) {
    memory_.fill([] { return kMark; });
  }

  template <class U>
  Planes<U> planes() const {
    return {memory_.data() + first_, stride_};
  }
  int64_t size() const { return samples_ * plane_; }
  T& operator[](int64_t e) const { return memory_[first_ + e / plane_ * stride_ + e % plane_]; }
  template <class F>
  void fill(F value) const {
    for (int64_t e = 0; e < size(); ++e) (*this)[e] = static_cast<T>(value());
  }
  Values values() const {
    Values out;
    for (int64_t e = 0; e < size(); ++e) out.push_back((*this)[e]);
    return out;
  }
  bool others_untouched() const {
    const int64_t channels = memory_.size() / plane_;
    for (int64_t e = 0; e < memory_.size(); ++e) {
      const int64_t from = e - first_;
      const bool own = from >= 0 && (stride_ == 0 ? from : from % stride_) < plane_;
      if (!own && memory_[e] != static_cast<T>(kMark)) return false;
    }
    return channels > 0;
  }

 private:
  static constexpr double kMark = 77;

  int64_t samples_, plane_, stride_, first_;
  Array<T> memory_;
};

double mean_of(const Values& v) {
  double sum = 0;
  for (const double value : v) sum += value;
  return sum / static_cast<double>(v.size());
}

Values product(const Values& a, const Values& b) {
  Values out(a.size());
  for (size_t e = 0; e < a.size(); ++e) out[e] = a[e] * b[e];
  return out;
}

// a x + b y + c
Values affine(double a, const Values& x, double b, const Values& y, double c = 0) {
  Values out(x.size());
  for (size_t e = 0; e < x.size(); ++e) out[e] = a * x[e] + b * y[e] + c;
  return out;
}

double largest(const Values& v) {
  double most = 0;
  for (const double value : v) most = std::max(most, std::abs(value));
  return most;
}

// The gate as a list of places: which value of x's size output e takes, -1 for none.
struct Gate {
  std::vector<int64_t> source;
  int64_t inputs;

  Values apply(const Values& x) const {
    Values out;
    for (const int64_t place : source) out.push_back(place < 0 ? 0 : x[place]);
    return out;
  }
  Values transpose(const Values& y) const {
    Values out(static_cast<size_t>(inputs));
    for (size_t e = 0; e < source.size(); ++e) {
      if (source[e] >= 0) out[source[e]] += y[e];
    }
    return out;
  }
};

// Where the window of output e has its j-th value.
int64_t place_in_window(const NormActPoolShape& s, int64_t e, int64_t j) {
  if (!s.pool) return e;
  const int64_t width = s.width / 2, plane = s.height / 2 * width;
  const int64_t row = e % plane / width * 2 + j / 2, column = e % width * 2 + j % 2;
  return (e / plane * s.height + row) * s.width + column;
}

// The gate that codes describe, and whether they are those of the values: the first maximum, closed
// where it is not positive. `slack` is what rounding may decide otherwise.
template <class Codes>
Gate read_gate(const NormActPoolShape& s, const Codes& codes, const Values& values, double slack,
               bool& good) {
  Gate gate{{}, static_cast<int64_t>(values.size())};
  const int64_t outputs = s.samples * plane_of_y(s);
  for (int64_t e = 0; e < outputs; ++e) {
    int64_t best = 0;
    for (int64_t j = 1; j < (s.pool ? 4 : 1); ++j) {
      if (values[place_in_window(s, e, j)] > values[place_in_window(s, e, best)]) best = j;
    }
    const double most = values[place_in_window(s, e, best)];
    const int64_t code = s.relu || s.pool ? codes[e] : 0;
    if (code == kClosed) {
      good &= s.relu && most <= slack;
      gate.source.push_back(-1);
      continue;
    }
    good &= code < (s.pool ? 4 : 1);
    const int64_t place = place_in_window(s, e, code < 4 ? code : 0);
    good &= code == best || values[place] >= most - slack;
    good &= !s.relu || most > -slack;
    if (slack == 0) good &= code == best && (!s.relu || most > 0);
    gate.source.push_back(place);
  }
  return gate;
}

// xhat and its derivatives, on the norm's side of the gate.
struct Norm {
  Values xhat;
  double rstd;

  // X(v)
  Values along(const Values& v) const {
    const double q = mean_of(product(v, xhat));
    return affine(rstd, v, -rstd * q, xhat, -rstd * mean_of(v));
  }
  // X(v, c)
  Values along(const Values& v, const Values& c) const {
    const double q_v = mean_of(product(v, xhat)), q_c = mean_of(product(c, xhat));
    const double s = mean_of(product(v, along(c)));
    const Values mixed = affine(q_c, along(v), q_v, along(c));
    return affine(-rstd, mixed, -rstd * s, xhat);
  }
};

template <class T>
bool run_case(const NormActPoolShape& s, const Layout& layout, unsigned seed) {
  const auto& kernel = kernels(T());
  const std::string name = text(
      "norm_act_pool, N=%d %dx%d%s%s%s%s channel %d of %d, %s", int(s.samples), int(s.height),
      int(s.width), s.relu ? " relu" : "", s.pool ? " pool" : "", s.norm_first ? " norm first" : "",
      s.stream ? " stream" : "", int(layout.channel), int(layout.channels), kTypeName<T>);
  Random random(seed);
  const auto value = [&] {
    return layout.whole_numbers ? static_cast<double>(random.whole(-1, 1)) : random.normal();
  };
  const double weight = random.normal(), bias = random.normal(), eps = 1e-5;
  const bool gated = s.relu || s.pool;

  const Channel<T> x(s, plane_of_x(s), layout, layout.shared), y(s, plane_of_y(s), layout);
  const Channel<uint8_t> gate(s, plane_of_y(s), layout);
  const Array<T> mean(1, layout.at_end), rstd(1, layout.at_end);
  const Array<T> scratch(kernel.scratch_size(s), layout.at_end);
  for (const Channel<T>* a : {&x, &y}) a->fill(value);
  for (const Array<T>* a : {&mean, &rstd, &scratch}) a->poison();
  const Planes<uint8_t> codes = gated ? gate.template planes<uint8_t>() : Planes<uint8_t>{};
  kernel.forward(s,
                 {x.template planes<const T>(), weight, bias, eps, y.template planes<T>(), codes,
                  mean.data(), rstd.data()},
                 scratch.data());

  // Gate first: its codes are those of x itself, to the last bit.
  bool good = true;
  const Values input = x.values();
  Values inner = input;
  Gate path;
  if (!s.norm_first) {
    path = read_gate(s, gate, input, 0, good);
    inner = path.apply(input);
  }
  const double center = mean_of(inner);
  double squares = 0;
  for (const double v : inner) squares += (v - center) * (v - center);
  const double deviation = 1 / std::sqrt(squares / static_cast<double>(inner.size()) + eps);
  good &= close("mean", name, mean, {center}, kBound<T>, 1);
  good &= close("rstd", name, rstd, {deviation}, kBound<T>);
  // From here on the two are what the forward pass has rounded them to.
  Norm norm{affine(rstd[0], inner, 0, inner, -double(rstd[0]) * mean[0]), rstd[0]};
  const double size = 1 + largest(norm.xhat) + norm.rstd * (sizeof(T) == 8 ? 1 : 0.01);
  Values expected = affine(weight, norm.xhat, 0, norm.xhat, bias);
  if (s.norm_first) {
    const double slack = layout.whole_numbers ? 1e-9 * size : kBound<T> * size;
    path = read_gate(s, gate, expected, slack, good);
    expected = path.apply(expected);
  }
  good = holds(good, "gate", name);
  const double scale = size * (1 + std::abs(weight) + std::abs(bias));
  good &= close("y", name, y, expected, kBound<T>, scale);
  good &= holds(y.others_untouched() && gate.others_untouched(), "other channels of y", name);

  NormActPoolShape derivative = s;  // the gate's codes say all else
  derivative.relu = s.relu && !s.pool;
  const NormActPoolPoint<T> point = {
      x.template planes<const T>(), weight, {codes.data, codes.stride}, mean[0], rstd[0]};
  const Channel<T> g(s, plane_of_y(s), layout, layout.shared), v(s, plane_of_x(s), layout);
  for (const Channel<T>* a : {&g, &v}) a->fill([&] { return random.normal(); });
  const double weight_dot = random.normal(), bias_dot = random.normal();
  const Values h = s.norm_first ? path.transpose(g.values()) : g.values();
  const Values along = s.norm_first ? v.values() : path.apply(v.values());
  const auto to_x = [&](const Values& a) { return s.norm_first ? a : path.transpose(a); };
  const auto to_y = [&](const Values& a) { return s.norm_first ? path.apply(a) : a; };
  const double count = static_cast<double>(inner.size());
  const double unit = scale * (norm.rstd + 1) * (largest(h) + largest(along) + 1);

  const Channel<T> x_grad(s, plane_of_x(s), layout), y_dot(s, plane_of_y(s), layout);
  const Array<T> weight_grad(1, layout.at_end), bias_grad(1, layout.at_end);
  const auto poison = [&] {
    for (const Array<T>* a : {&weight_grad, &bias_grad, &scratch}) a->poison();
    for (const Channel<T>* a : {&x_grad, &y_dot}) a->fill([] { return NAN; });
  };
  poison();
  kernel.backward(derivative,
                  {point, g.template planes<const T>(), x_grad.template planes<T>(),
                   weight_grad.data(), bias_grad.data()},
                  scratch.data());
  const Values zeros(inner.size());
  good &= close("backward to x", name, x_grad, to_x(affine(weight, norm.along(h), 0, zeros)),
                kBound<T>, unit);
  good &= close("backward to weight", name, weight_grad, {count * mean_of(product(h, norm.xhat))},
                kBound<T>, unit * std::sqrt(count));
  good &= close("backward to bias", name, bias_grad, {count * mean_of(h)}, kBound<T>,
                unit * std::sqrt(count));

  poison();
  const NormActPoolTangent<T> tangent = {point, v.template planes<const T>(), weight_dot, bias_dot,
                                         y_dot.template planes<T>()};
  kernel.tangent(derivative, tangent, scratch.data());
  const Values direction = to_y(affine(weight, norm.along(along), weight_dot, norm.xhat, bias_dot));
  good &= close("tangent", name, y_dot, direction, kBound<T>, 2 * unit);

  poison();
  kernel.double_backward(
      derivative,
      {tangent, g.template planes<const T>(), x_grad.template planes<T>(), weight_grad.data()},
      scratch.data());
  const double unit_squared = 2 * unit * (norm.rstd + 1) * size * (largest(h) + largest(along) + 1);
  good &= close("double backward to y", name, y_dot, direction, kBound<T>, 2 * unit);
  good &= close("double backward to x", name, x_grad,
                to_x(affine(weight, norm.along(h, along), weight_dot, norm.along(h))), kBound<T>,
                unit_squared);
  good &= close("double backward to weight", name, weight_grad,
                {count * mean_of(product(h, norm.along(along)))}, kBound<T>,
                unit_squared * std::sqrt(count));
  return good & holds(x_grad.others_untouched() && y_dot.others_untouched(),
                      "other channels of derivatives", name);
}

}  // namespace

// Planes from one value; of a register and more, of a band and more, and of several samples that
// are packed together or not.
static Count run(int draws, unsigned seed) {
  Random random(seed);
  Count count;
  for (int draw = 0; draw < draws; ++draw) {
    const bool pool = random.one_in(2);
    const int64_t least = pool ? 2 : 1, most = random.one_in(8) ? 75 : random.one_in(2) ? 24 : 6;
    const NormActPoolShape s = {random.whole(1, 5),
                                random.whole(least, most),
                                random.whole(least, most),
                                random.one_in(2),
                                pool,
                                random.one_in(2),
                                random.one_in(3)};
    const int64_t channels = random.whole(1, 3);
    for (const bool at_end : {false, true}) {
      // the guarded side is the outermost channel's
      const Layout layout = {channels, at_end ? channels - 1 : 0, random.one_in(6),
                             random.one_in(3), at_end};
      count.add(run_case<float>(s, layout, seed + draw));
      count.add(run_case<double>(s, layout, seed + draw));
    }
  }
  return count;
}

static const Op op("norm_act_pool", run);

}  // namespace metasparse::check
