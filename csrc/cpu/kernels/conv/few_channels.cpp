// Products of few rows of V with outputs, or their gradients, where these lie in memory.
//
//   forward           y[o] = bias[o] + sum over k of w[o, k] V[k]
//   weight gradient   dW[o, k] += <dy[o], V[k]>
//
// over one strip of pixels. All kernels are computed, pruned ones as zeros.
#include "../transpose.h"
#include "../vec.h"
#include "tables.h"

namespace metasparse::cpu::METASPARSE_ISA {

namespace {

// ---- forward -----------------------------------------------------------------------------------

// Channels, and registers of pixels, that are summed at once; AVX-512 has the registers for twice
// as many as the others.
constexpr int kForwardChannels = 4;
template <class T>
inline constexpr int kForwardVectors = sizeof(Vec<T>) == 64 ? 6 : 3;

template <class T>
struct ChannelGroup {
  const T* weights[kForwardChannels];  // past the end the last channel is repeated
  Vec<T> bias[kForwardChannels];
  T* y;
  int count;
};

template <class T>
ChannelGroup<T> channel_group(const FewChannelsForwardArgs<T>& args, int64_t first) {
  ChannelGroup<T> group;
  for (int g = 0; g < kForwardChannels; ++g) {
    const int64_t channel = first + g < args.channels ? first + g : args.channels - 1;
    group.weights[g] = args.weights + channel * args.rows;
    group.bias[g] = broadcast(args.bias == nullptr ? T(0) : args.bias[channel]);
  }
  group.y = args.y + first * args.plane;
  const int64_t rest = args.channels - first;
  group.count = static_cast<int>(rest < kForwardChannels ? rest : kForwardChannels);
  return group;
}

// N registers from `pixel` on, of the last of which only some `lanes` are written.
template <class T, int N, bool Stream>
METASPARSE_INLINE void forward_pixels(const FewChannelsForwardArgs<T>& args,
                                      const ChannelGroup<T>& group, int64_t pixel, Lanes lanes) {
  constexpr int L = kLanes<T>, G = kForwardChannels;
  Vec<T> sum[G][N];
  METASPARSE_UNROLL
  for (int g = 0; g < G; ++g) {
    METASPARSE_UNROLL
    for (int n = 0; n < N; ++n) sum[g][n] = group.bias[g];
  }
  const T* v = args.v + pixel;
  for (int64_t k = 0; k < args.rows; ++k, v += args.width) {
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
    T* y = group.y + g * args.plane + pixel;
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
void forward_rest(const FewChannelsForwardArgs<T>& args, const ChannelGroup<T>& group,
                  int64_t pixel) {
  constexpr int64_t kBefore = (N - 1) * kLanes<T>;
  const int64_t rest = args.pixels - pixel;
  if constexpr (N > 1) {
    if (rest <= kBefore) return forward_rest<T, N - 1, Stream>(args, group, pixel);
  }
  forward_pixels<T, N, Stream>(args, group, pixel, lanes_between(0, rest - kBefore, kLanes<T>));
}

template <class T, bool Stream>
void forward_strip(const FewChannelsForwardArgs<T>& args) {
  constexpr int L = kLanes<T>, N = kForwardVectors<T>;
  for (int64_t channel = 0; channel < args.channels; channel += kForwardChannels) {
    const ChannelGroup<T> group = channel_group(args, channel);
    int64_t pixel = 0;
    for (; pixel + N * L <= args.pixels; pixel += N * L) {
      forward_pixels<T, N, Stream>(args, group, pixel, kAllLanes<T>);
    }
    if (pixel < args.pixels) forward_rest<T, N, Stream>(args, group, pixel);
  }
}

template <class T>
void forward(const FewChannelsForwardArgs<T>& args) {
  const bool whole = args.plane % kLanes<T> == 0 && args.pixels % kLanes<T> == 0;
  if (!args.stream || !whole || !aligned(args.y)) return forward_strip<T, false>(args);
  forward_strip<T, true>(args);
  finish_streams();
}

// ---- weight gradient ---------------------------------------------------------------------------

// Channels and rows of V whose products are summed at once, and the registers that hold these sums
// when each has been summed to one lane.
constexpr int kGradChannels = 3;
template <class T>
inline constexpr int kGradRows = sizeof(Vec<T>) == 64 ? 9 : 3;
template <class T>
inline constexpr int kGradVectors = (kGradChannels * kGradRows<T> + kLanes<T> - 1) / kLanes<T>;

// The first pass over the gradient asks for the channels that come next.
template <class T, int K>
void grad_rows(const FewChannelsWeightGradArgs<T>& args, int64_t channel, int64_t row, T* out) {
  constexpr int L = kLanes<T>, R = kGradChannels;
  const T* grad[R];  // past the end the last channel is repeated
  for (int r = 0; r < R; ++r) {
    const int64_t at = channel + r < args.channels ? channel + r : args.channels - 1;
    grad[r] = args.grad + at * args.plane;
  }
  const int64_t ahead = row == 0 ? R * args.plane : 0;
  const T* v = args.v + row * args.width;
  Vec<T> sum[kGradVectors<T> * L] = {};
  const auto add = [&](const Vec<T>* d, int64_t pixel) METASPARSE_BODY {
    METASPARSE_UNROLL
    for (int k = 0; k < K; ++k) {
      const Vec<T> x = in_register<T>(load(v + k * args.width + pixel));
      METASPARSE_UNROLL
      for (int r = 0; r < R; ++r) {
        sum[r * kGradRows<T> + k] = d[r] * x + sum[r * kGradRows<T> + k];
      }
    }
  };
  for (int64_t image = 0; image < args.images; ++image, v += args.image_width) {
    int64_t pixel = 0;
    Vec<T> d[R];
    for (; pixel + L <= args.pixels; pixel += L) {
      METASPARSE_UNROLL
      for (int r = 0; r < R; ++r) {
        __builtin_prefetch(grad[r] + pixel + ahead);
        d[r] = load_unaligned(grad[r] + pixel);
      }
      add(d, pixel);
    }
    if (pixel < args.pixels) {
      const Lanes rest = lanes_between(0, args.pixels - pixel, L);
      METASPARSE_UNROLL
      for (int r = 0; r < R; ++r) d[r] = load_some(rest, grad[r] + pixel);
      add(d, pixel);
    }
    for (int r = 0; r < R; ++r) grad[r] += args.image_size;
  }
  METASPARSE_UNROLL
  for (int i = 0; i < kGradVectors<T>; ++i) {
    store(out + i * L, load(out + i * L) + sum_lanes<T, L>(sum + i * L));
  }
}

// The same for the last rows, fewer than K.
template <class T, int K>
void grad_rest(const FewChannelsWeightGradArgs<T>& args, int64_t channel, int64_t row, T* out) {
  if constexpr (K > 1) {
    if (args.rows - row == K - 1) return grad_rows<T, K - 1>(args, channel, row, out);
    grad_rest<T, K - 1>(args, channel, row, out);
  }
}

template <class T>
void weight_grad(const FewChannelsWeightGradArgs<T>& args) {
  constexpr int K = kGradRows<T>, kSums = kGradVectors<T> * kLanes<T>;
  T* out = args.out;
  for (int64_t channel = 0; channel < args.channels; channel += kGradChannels) {
    for (int64_t row = 0; row < args.rows; row += K, out += kSums) {
      if (row + K <= args.rows) {
        grad_rows<T, K>(args, channel, row, out);
      } else {
        grad_rest<T, K>(args, channel, row, out);
      }
    }
  }
}

template <class T>
constexpr FewChannelsKernels<T> kTable = {
    forward<T>,
    weight_grad<T>,
    {kGradChannels, kGradRows<T>, kGradVectors<T> * kLanes<T>},
};

}  // namespace

template <class T>
const FewChannelsKernels<T>& few_channels_kernels() {
  return kTable<T>;
}

template const FewChannelsKernels<float>& few_channels_kernels<float>();
template const FewChannelsKernels<double>& few_channels_kernels<double>();

}  // namespace metasparse::cpu::METASPARSE_ISA
