// The block after a convolution, on one channel of one task.
//
// csrc/cpu/norm_act_pool.cpp calls these kernels through one table per instruction set. What they
// compute is stated in csrc/autograd/norm_act_pool.cpp.
#pragma once

#include <cstdint>

#include "../../../norm_act_pool_gate.h"
#include "../../runtime/isa.h"

namespace metasparse::cpu {

struct NormActPoolShape {
  int64_t samples, height, width;  // of x
  bool relu, pool;
  bool norm_first;  // norm, then gate; otherwise gate, then norm
  bool stream;      // results are larger than the caches: write past them
};

// The planes of one channel: that of sample n starts at data + n * stride and is contiguous.
template <class T>
struct Planes {
  T* data;
  int64_t stride;
};

// The gate's planes are null where nothing is gated (neither ReLU nor pooling).
template <class T>
struct NormActPoolForward {
  Planes<const T> x;
  double weight, bias, eps;
  Planes<T> y;
  Planes<uint8_t> gate;
  T *mean, *rstd;
};

template <class T>
struct NormActPoolPoint {  // where a derivative is taken, with what the forward pass saved
  Planes<const T> x;
  double weight;
  Planes<const uint8_t> gate;
  T mean, rstd;
};

template <class T>
struct NormActPoolBackward {
  NormActPoolPoint<T> at;
  Planes<const T> grad;
  Planes<T> x_grad;
  T *weight_grad, *bias_grad;
};

template <class T>
struct NormActPoolTangent {
  NormActPoolPoint<T> at;
  Planes<const T> x_dot;
  double weight_dot, bias_dot;
  Planes<T> y_dot;
};

template <class T>
struct NormActPoolDoubleBackward {
  NormActPoolTangent<T> tangent;
  Planes<const T> grad;
  Planes<T> x_grad;
  T* weight_grad;
};

// `scratch` holds scratch_size(shape) values.
template <class T>
struct NormActPoolKernels {
  int64_t (*scratch_size)(const NormActPoolShape&);
  void (*forward)(const NormActPoolShape&, const NormActPoolForward<T>&, T* scratch);
  void (*backward)(const NormActPoolShape&, const NormActPoolBackward<T>&, T* scratch);
  void (*tangent)(const NormActPoolShape&, const NormActPoolTangent<T>&, T* scratch);
  void (*double_backward)(const NormActPoolShape&, const NormActPoolDoubleBackward<T>&, T* scratch);
};

}  // namespace metasparse::cpu

METASPARSE_PER_ISA(extern const NormActPoolKernels<float> norm_act_pool_float;
                   extern const NormActPoolKernels<double> norm_act_pool_double;)
