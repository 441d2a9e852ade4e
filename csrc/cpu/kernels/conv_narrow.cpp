// Products of few rows of V with outputs, or their gradients, where these lie in memory.
//
//   product   y[o] = bias[o] + sum over k of w[o, k] V[k]
//   sampled   dW[o, k] += <dy[o], V[k]>
//
// over one strip of pixels. All kernels are computed, pruned ones as zeros.
#include "conv_tables.h"
#include "squares.h"
#include "vec.h"

namespace metasparse::cpu::METASPARSE_ISA {

namespace {

// ---- product -----------------------------------------------------------------------------------

// Channels, and registers of pixels, that are summed at once; AVX-512 has the registers for twice
// as many as the others.
constexpr int kProductChannels = 4;
template <class T>
inline constexpr int kProductVectors = sizeof(Vec<T>) == 64 ? 6 : 3;

template <class T>
struct ChannelGroup {
  const T* weights[kProductChannels];  // past the end the last channel is repeated
  Vec<T> bias[kProductChannels];
  T* y;
  int count;
};

template <class T>
ChannelGroup<T> channel_group(const NarrowStep<T>& step, int64_t first) {
  ChannelGroup<T> group;
  for (int g = 0; g < kProductChannels; ++g) {
    const int64_t channel = first + g < step.channels ? first + g : step.channels - 1;
    group.weights[g] = step.weights + channel * step.rows;
    group.bias[g] = broadcast(step.bias == nullptr ? T(0) : step.bias[channel]);
  }
  group.y = step.y + first * step.plane;
  const int64_t rest = step.channels - first;
  group.count = static_cast<int>(rest < kProductChannels ? rest : kProductChannels);
  return group;
}

// N registers from `pixel` on, of the last of which only some `lanes` are written.
template <class T, int N, bool Stream>
METASPARSE_INLINE void product_pixels(const NarrowStep<T>& step, const ChannelGroup<T>& group,
                                      int64_t pixel, Lanes lanes) {
  constexpr int L = kLanes<T>, G = kProductChannels;
  Vec<T> sum[G][N];
  METASPARSE_UNROLL
  for (int g = 0; g < G; ++g) {
    METASPARSE_UNROLL
    for (int n = 0; n < N; ++n) sum[g][n] = group.bias[g];
  }
  const T* v = step.v + pixel;
  for (int64_t k = 0; k < step.rows; ++k, v += step.width) {
    Vec<T> x[N];
    METASPARSE_UNROLL
    for (int n = 0; n < N; ++n) x[n] = in_register<T>(load(v + n * L));
    METASPARSE_UNROLL
    for (int g = 0; g < G; ++g) {
      const Vec<T> w = broadcast(group.weights[g][k]);
      METASPARSE_UNROLL
      for (int n = 0; n < N; ++n) sum[g][n] = w * x[n] + sum[g][n];
    }
  }
  METASPARSE_UNROLL
  for (int g = 0; g < G; ++g) {
    if (g >= group.count) break;
    T* y = group.y + g * step.plane + pixel;
    METASPARSE_UNROLL
    for (int n = 0; n < N; ++n) {
      if constexpr (Stream) {
        store_streamed(y + n * L, sum[g][n]);
      } else if (n == N - 1) {
        store_some(lanes, y + n * L, sum[g][n]);
      } else {
        store_unaligned(y + n * L, sum[g][n]);
      }
    }
  }
}

// The last pixels, in N registers or fewer.
template <class T, int N, bool Stream>
void product_rest(const NarrowStep<T>& step, const ChannelGroup<T>& group, int64_t pixel) {
  constexpr int64_t kBefore = (N - 1) * kLanes<T>;
  const int64_t rest = step.pixels - pixel;
  if constexpr (N > 1) {
    if (rest <= kBefore) return product_rest<T, N - 1, Stream>(step, group, pixel);
  }
  product_pixels<T, N, Stream>(step, group, pixel, lanes_between(0, rest - kBefore, kLanes<T>));
}

template <class T, bool Stream>
void product_strip(const NarrowStep<T>& step) {
  constexpr int L = kLanes<T>, N = kProductVectors<T>;
  for (int64_t channel = 0; channel < step.channels; channel += kProductChannels) {
    const ChannelGroup<T> group = channel_group(step, channel);
    int64_t pixel = 0;
    for (; pixel + N * L <= step.pixels; pixel += N * L) {
      product_pixels<T, N, Stream>(step, group, pixel, kAllLanes<T>);
    }
    if (pixel < step.pixels) product_rest<T, N, Stream>(step, group, pixel);
  }
}

template <class T>
void product(const NarrowStep<T>& step) {
  const bool whole = step.plane % kLanes<T> == 0 && step.pixels % kLanes<T> == 0;
  if (!step.stream || !whole || !aligned(step.y)) return product_strip<T, false>(step);
  product_strip<T, true>(step);
  finish_streams();
}

// ---- sampled -----------------------------------------------------------------------------------

// Channels and rows of V whose products are summed at once, and the registers that hold these sums
// when each has been summed to one lane.
constexpr int kSampledChannels = 3;
template <class T>
inline constexpr int kSampledRows = sizeof(Vec<T>) == 64 ? 9 : 3;
template <class T>
inline constexpr int kSampledVectors =
    (kSampledChannels * kSampledRows<T> + kLanes<T> - 1) / kLanes<T>;

// The first pass over the gradient asks for the channels that come next.
template <class T, int K>
void sampled_rows(const NarrowSampledStep<T>& step, int64_t channel, int64_t row, T* out) {
  constexpr int L = kLanes<T>, R = kSampledChannels;
  const T* grad[R];  // past the end the last channel is repeated
  for (int r = 0; r < R; ++r) {
    const int64_t at = channel + r < step.channels ? channel + r : step.channels - 1;
    grad[r] = step.grad + at * step.plane;
  }
  const int64_t ahead = row == 0 ? R * step.plane : 0;
  const T* v = step.v + row * step.width;
  Vec<T> sum[kSampledVectors<T> * L] = {};
  const auto add = [&](const Vec<T>* d, int64_t pixel) METASPARSE_BODY {
    METASPARSE_UNROLL
    for (int k = 0; k < K; ++k) {
      const Vec<T> x = in_register<T>(load(v + k * step.width + pixel));
      METASPARSE_UNROLL
      for (int r = 0; r < R; ++r) {
        sum[r * kSampledRows<T> + k] = d[r] * x + sum[r * kSampledRows<T> + k];
      }
    }
  };
  for (int64_t image = 0; image < step.images; ++image, v += step.image_width) {
    int64_t pixel = 0;
    Vec<T> d[R];
    for (; pixel + L <= step.pixels; pixel += L) {
      METASPARSE_UNROLL
      for (int r = 0; r < R; ++r) {
        __builtin_prefetch(grad[r] + pixel + ahead);
        d[r] = load_unaligned(grad[r] + pixel);
      }
      add(d, pixel);
    }
    if (pixel < step.pixels) {
      const Lanes rest = lanes_between(0, step.pixels - pixel, L);
      METASPARSE_UNROLL
      for (int r = 0; r < R; ++r) d[r] = load_some(rest, grad[r] + pixel);
      add(d, pixel);
    }
    for (int r = 0; r < R; ++r) grad[r] += step.image_size;
  }
  METASPARSE_UNROLL
  for (int i = 0; i < kSampledVectors<T>; ++i) {
    store(out + i * L, load(out + i * L) + sum_lanes<T, L>(sum + i * L));
  }
}

// The same for the last rows, fewer than K.
template <class T, int K>
void sampled_rest(const NarrowSampledStep<T>& step, int64_t channel, int64_t row, T* out) {
  if constexpr (K > 1) {
    if (step.rows - row == K - 1) return sampled_rows<T, K - 1>(step, channel, row, out);
    sampled_rest<T, K - 1>(step, channel, row, out);
  }
}

template <class T>
void sampled(const NarrowSampledStep<T>& step) {
  constexpr int K = kSampledRows<T>, kSums = kSampledVectors<T> * kLanes<T>;
  T* out = step.out;
  for (int64_t channel = 0; channel < step.channels; channel += kSampledChannels) {
    for (int64_t row = 0; row < step.rows; row += K, out += kSums) {
      if (row + K <= step.rows) {
        sampled_rows<T, K>(step, channel, row, out);
      } else {
        sampled_rest<T, K>(step, channel, row, out);
      }
    }
  }
}

template <class T>
constexpr NarrowKernels<T> kTable = {
    kLanes<T>,
    product<T>,
    sampled<T>,
    {kSampledChannels, kSampledRows<T>, kSampledVectors<T> * kLanes<T>},
};

}  // namespace

template <class T>
const NarrowKernels<T>& narrow_kernels() {
  return kTable<T>;
}

template const NarrowKernels<float>& narrow_kernels<float>();
template const NarrowKernels<double>& narrow_kernels<double>();

}  // namespace metasparse::cpu::METASPARSE_ISA
