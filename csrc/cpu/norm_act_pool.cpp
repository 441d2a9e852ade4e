// The norm_act_pool family on the CPU: one unit of work per task and channel.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "../checks/norm_act_pool.h"
#include "empty_large.h"
#include "kernels/norm/norm_act_pool.h"
#include "runtime/isa.h"
#include "runtime/memory.h"
#include "runtime/parallel.h"

namespace metasparse::cpu {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <class T>
const NormActPoolKernels<T>& kernels() {
  if constexpr (std::is_same_v<T, float>) {
    return METASPARSE_COPY_FOR(active_isa(), norm_act_pool_float);
  } else {
    return METASPARSE_COPY_FOR(active_isa(), norm_act_pool_double);
  }
}

// Expanded and sliced planes are read where they are; only planes with gaps are copied.
Tensor with_whole_planes(const Tensor& t) {
  const bool rows_whole = t.stride(4) == 1 || t.size(4) == 1;
  const bool planes_whole = t.stride(3) == t.size(4) || t.size(3) == 1;
  return rows_whole && planes_whole ? t : t.contiguous();
}

NormActPoolShape shape_of(const Tensor& x, bool relu, bool pool, bool norm_first) {
  return {x.size(1), x.size(3), x.size(4), relu, pool, norm_first, x.nbytes() >= kStreamedBytes};
}

Tensor empty_input(const Tensor& x) { return empty_large(x.sizes(), x.options()); }

// Of y's size; bytes for the gate.
Tensor empty_output(const Tensor& x, bool pool, at::ScalarType dtype) {
  const int64_t divisor = pool ? 2 : 1;
  return empty_large({x.size(0), x.size(1), x.size(2), x.size(3) / divisor, x.size(4) / divisor},
                     x.options().dtype(dtype));
}

Tensor empty_per_channel(const Tensor& x) { return at::empty({x.size(0), x.size(2)}, x.options()); }

// The channel's planes of a (T, N, C, H, W) tensor. Null for a gate that gates nothing.
template <class T>
Planes<T> planes_of(const Tensor& t, int64_t task, int64_t channel) {
  if (t.dim() != 5) return {nullptr, 0};
  T* data = nullptr;
  if constexpr (std::is_const_v<T>) {
    data = t.const_data_ptr<std::remove_const_t<T>>();
  } else {
    data = t.mutable_data_ptr<T>();
  }
  return {data + task * t.stride(0) + channel * t.stride(2), t.stride(1)};
}

// An entry of a (T, C) tensor.
template <class T>
T* place_in(const Tensor& t, int64_t task, int64_t channel) {
  return t.mutable_data_ptr<T>() + task * t.stride(0) + channel * t.stride(1);
}

template <class T>
T value_in(const Tensor& t, int64_t task, int64_t channel) {
  return t.const_data_ptr<T>()[task * t.stride(0) + channel * t.stride(1)];
}

template <class T>
double value_or(const OptionalTensor& t, int64_t task, int64_t channel, double otherwise) {
  return t.has_value() ? value_in<T>(*t, task, channel) : otherwise;
}

// body(task, channel, scratch) for every channel of every task.
template <class T, class Body>
void each_channel(const Tensor& x, const NormActPoolShape& shape, const Body& body) {
  constexpr int64_t kGrain = 1 << 15;  // values worth a thread
  const int64_t channels = x.size(2), values = shape.samples * shape.height * shape.width;
  const int64_t grain = std::max<int64_t>(1, kGrain / values);
  const int64_t room = kernels<T>().scratch_size(shape);
  const Tensor scratch = at::empty({at::get_num_threads(), room}, x.options());
  T* const first = scratch.mutable_data_ptr<T>();
  parallel_range(0, x.size(0) * channels, grain, [&](int64_t begin, int64_t end) {
    T* const own = first + at::get_thread_num() * room;
    for (int64_t i = begin; i < end; ++i) body(i / channels, i % channels, own);
  });
}

// x and what the forward pass saved, ready to be read by channels.
struct Point {
  Tensor x, mean, rstd, gate;
  OptionalTensor weight;

  Point(const char* op, const Tensor& x_, const OptionalTensor& weight_, const Tensor& mean_,
        const Tensor& rstd_, const Tensor& gate_, bool pool)
      : mean(mean_), rstd(rstd_), weight(weight_) {
    check_norm_act_pool_point(op, x_, weight_, mean_, rstd_, gate_, pool);
    x = with_whole_planes(x_);
    gate = gate_.dim() == 5 ? with_whole_planes(gate_) : gate_;
  }

  NormActPoolShape shape(bool pool, bool norm_first) const {
    const bool relu_alone = !pool && gate.dim() == 5;
    return shape_of(x, relu_alone, pool, norm_first);
  }

  template <class T>
  NormActPoolPoint<T> channel(int64_t t, int64_t c) const {
    return {planes_of<const T>(x, t, c), value_or<T>(weight, t, c, 1),
            planes_of<const uint8_t>(gate, t, c), value_in<T>(mean, t, c), value_in<T>(rstd, t, c)};
  }
};

// A direction (x_dot, weight_dot, bias_dot) likewise.
struct Direction {
  Tensor x;
  OptionalTensor weight, bias;

  Direction(const char* op, const Tensor& x_dot, const OptionalTensor& weight_dot,
            const OptionalTensor& bias_dot, const Tensor& like)
      : weight(weight_dot), bias(bias_dot) {
    check_norm_act_pool_direction(op, x_dot, weight_dot, bias_dot, like);
    x = with_whole_planes(x_dot);
  }

  template <class T>
  NormActPoolTangent<T> channel(const Point& point, const Tensor& y_dot, int64_t t,
                                int64_t c) const {
    return {point.channel<T>(t, c), planes_of<const T>(x, t, c), value_or<T>(weight, t, c, 0),
            value_or<T>(bias, t, c, 0), planes_of<T>(y_dot, t, c)};
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> norm_act_pool(const Tensor& x_,
                                                         const OptionalTensor& weight,
                                                         const OptionalTensor& bias, double eps,
                                                         bool relu, bool pool, bool norm_first) {
  check_norm_act_pool(x_, weight, bias, eps, pool);
  const Tensor x = with_whole_planes(x_);
  const auto shape = shape_of(x, relu, pool, norm_first);
  const Tensor y = empty_output(x, pool, x.scalar_type());
  const Tensor mean = empty_per_channel(x), rstd = empty_per_channel(x);
  const Tensor gate = relu || pool ? empty_output(x, pool, at::kByte)
                                   : at::empty({x.size(0), 0}, x.options().dtype(at::kByte));
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "norm_act_pool", [&] {
    each_channel<scalar_t>(x, shape, [&](int64_t t, int64_t c, scalar_t* scratch) {
      const NormActPoolForward<scalar_t> job{
          planes_of<const scalar_t>(x, t, c), value_or<scalar_t>(weight, t, c, 1),
          value_or<scalar_t>(bias, t, c, 0),  eps,
          planes_of<scalar_t>(y, t, c),       planes_of<uint8_t>(gate, t, c),
          place_in<scalar_t>(mean, t, c),     place_in<scalar_t>(rstd, t, c)};
      kernels<scalar_t>().forward(shape, job, scratch);
    });
  });
  return {y, mean, rstd, gate};
}

std::tuple<Tensor, Tensor, Tensor> norm_act_pool_backward(const Tensor& grad_, const Tensor& x,
                                                          const OptionalTensor& weight,
                                                          const Tensor& mean, const Tensor& rstd,
                                                          const Tensor& gate, double /*eps*/,
                                                          bool pool, bool norm_first) {
  constexpr auto op = "norm_act_pool_backward";
  const Point point(op, x, weight, mean, rstd, gate, pool);
  check_like_output(op, "grad", grad_, x, pool);
  const Tensor grad = with_whole_planes(grad_);
  const auto shape = point.shape(pool, norm_first);
  const Tensor gx = empty_input(x);
  const Tensor gw = empty_per_channel(x), gb = empty_per_channel(x);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), op, [&] {
    each_channel<scalar_t>(x, shape, [&](int64_t t, int64_t c, scalar_t* scratch) {
      const NormActPoolBackward<scalar_t> job{
          point.channel<scalar_t>(t, c), planes_of<const scalar_t>(grad, t, c),
          planes_of<scalar_t>(gx, t, c), place_in<scalar_t>(gw, t, c),
          place_in<scalar_t>(gb, t, c)};
      kernels<scalar_t>().backward(shape, job, scratch);
    });
  });
  return {gx, gw, gb};
}

Tensor norm_act_pool_tangent(const Tensor& x_dot, const OptionalTensor& weight_dot,
                             const OptionalTensor& bias_dot, const Tensor& x,
                             const OptionalTensor& weight, const Tensor& mean, const Tensor& rstd,
                             const Tensor& gate, double /*eps*/, bool pool, bool norm_first) {
  constexpr auto op = "norm_act_pool_tangent";
  const Point point(op, x, weight, mean, rstd, gate, pool);
  const Direction direction(op, x_dot, weight_dot, bias_dot, x);
  const auto shape = point.shape(pool, norm_first);
  const Tensor y_dot = empty_output(x, pool, x.scalar_type());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), op, [&] {
    each_channel<scalar_t>(x, shape, [&](int64_t t, int64_t c, scalar_t* scratch) {
      kernels<scalar_t>().tangent(shape, direction.channel<scalar_t>(point, y_dot, t, c), scratch);
    });
  });
  return y_dot;
}

std::tuple<Tensor, Tensor, Tensor> norm_act_pool_double_backward(
    const Tensor& x_dot, const OptionalTensor& weight_dot, const OptionalTensor& bias_dot,
    const Tensor& grad_, const Tensor& x, const OptionalTensor& weight, const Tensor& mean,
    const Tensor& rstd, const Tensor& gate, double /*eps*/, bool pool, bool norm_first) {
  constexpr auto op = "norm_act_pool_double_backward";
  const Point point(op, x, weight, mean, rstd, gate, pool);
  const Direction direction(op, x_dot, weight_dot, bias_dot, x);
  check_like_output(op, "grad", grad_, x, pool);
  const Tensor grad = with_whole_planes(grad_);
  const auto shape = point.shape(pool, norm_first);
  const Tensor y_dot = empty_output(x, pool, x.scalar_type());
  const Tensor gx = empty_input(x), gw = empty_per_channel(x);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), op, [&] {
    each_channel<scalar_t>(x, shape, [&](int64_t t, int64_t c, scalar_t* scratch) {
      const NormActPoolDoubleBackward<scalar_t> job{
          direction.channel<scalar_t>(point, y_dot, t, c), planes_of<const scalar_t>(grad, t, c),
          planes_of<scalar_t>(gx, t, c), place_in<scalar_t>(gw, t, c)};
      kernels<scalar_t>().double_backward(shape, job, scratch);
    });
  });
  return {y_dot, gx, gw};
}

}  // namespace
}  // namespace metasparse::cpu

TORCH_LIBRARY_IMPL(metasparse, CPU, m) {
  m.impl("norm_act_pool", metasparse::cpu::norm_act_pool);
  m.impl("norm_act_pool_backward", metasparse::cpu::norm_act_pool_backward);
  m.impl("norm_act_pool_tangent", metasparse::cpu::norm_act_pool_tangent);
  m.impl("norm_act_pool_double_backward", metasparse::cpu::norm_act_pool_double_backward);
}
