// Radix select: scores become unsigned keys that order as they do; pass by pass the key of the k-th
// largest gains 11 bits, from a histogram of the keys that begin like it. Three passes settle
// float32, six float64, and a last one writes the mask. A row is the work of one team: a cluster of
// eight blocks on sm_90, one block elsewhere. Each block keeps the histogram of its part of the
// row, in shared memory, where the others add it up; counts are integers, so their order is free.
#include <limits>

#include "device.cuh"
#include "launch.h"
#include "reduce.cuh"
#include "topk_mask.h"

namespace metasparse::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kClusterBlocks = 8;
constexpr int kDigitBits = 11;
constexpr int kBins = 1 << kDigitBits;
constexpr int kBinsPerThread = kBins / kThreads;

// Keys: greater score, greater key; -0.0 and +0.0 have the same.
__device__ uint32_t key_of(float score) {
  const uint32_t bits = __float_as_uint(score + 0.0f);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

__device__ uint64_t key_of(double score) {
  const auto bits = static_cast<uint64_t>(__double_as_longlong(score + 0.0));
  return bits ^ (bits >> 63 ? ~uint64_t{0} : uint64_t{1} << 63);
}

template <class F>
using Key = decltype(key_of(F{}));

// The key of the k-th largest score as far as it is known: its bits from `shift` up.
template <class K>
struct Prefix {
  K bits = 0;
  int shift = std::numeric_limits<K>::digits;
  int rank;  // the wanted entry's place, from 1, among those that begin with these bits

  __device__ bool holds(K key) const {
    return shift == std::numeric_limits<K>::digits || key >> shift == bits;
  }
};

struct Shared {
  int histogram[2][kBins];  // used in turn: others may still read the last pass's
  int warps[2][kThreads / kWarpSize];
  int chosen_bin, rank_in_bin, at_bin, bad;
};

// A row, and the part of it that one block of the team takes.
template <class F>
struct Row {
  const F* scores;
  F* mask;
  int begin, end, n;
};

// Adds the digits of the block's entries to the histogram, and notes NaN.
template <class F>
__device__ void count(const Row<F>& row, const Prefix<Key<F>>& prefix, int shift, int* histogram,
                      int* bad) {
  const int digits = prefix.shift - shift;
  const int rounded = (row.end - row.begin + kThreads - 1) / kThreads * kThreads;
  for (int i = threadIdx.x; i < rounded; i += kThreads) {
    int bin = -1;
    if (row.begin + i < row.end) {
      const F score = row.scores[row.begin + i];
      const Key<F> key = key_of(score);
      if (score != score) *bad = 1;
      if (prefix.holds(key)) {
        bin = static_cast<int>(key >> shift & ((Key<F>{1} << digits) - 1));
      }
    }
    // Equal neighbours, such as the zeros of a pruned layer, are counted at once.
    int all = 0;
    __match_all_sync(kAllLanes, bin, &all);
    if (bin < 0 || (all && threadIdx.x % kWarpSize != 0)) continue;
    atomicAdd(histogram + bin, all ? kWarpSize : 1);
  }
}

// Finds the bin, counted from the greatest, in which the wanted entry lies.
template <int kBlocks>
__device__ void choose_bin(int* histogram, int rank, Shared& shared, int* warps) {
  int counts[kBinsPerThread], sum = 0;
  const int first = kBins - 1 - static_cast<int>(threadIdx.x) * kBinsPerThread;
  for (int b = 0; b < kBinsPerThread; ++b) {
    counts[b] = 0;
    for (int block = 0; block < kBlocks; ++block) {
      counts[b] += Team<kBlocks>::peer(histogram, block)[first - b];
    }
    sum += counts[b];
  }
  int before = block_scan<kThreads>(sum, warps).before;
  for (int b = 0; b < kBinsPerThread; ++b) {
    if (before < rank && rank <= before + counts[b]) {
      shared.chosen_bin = first - b;
      shared.rank_in_bin = rank - before;
      shared.at_bin = counts[b];
    }
    before += counts[b];
  }
  __syncthreads();
}

template <class F>
__device__ void fill(const Row<F>& row, F value) {
  for (int i = row.begin + threadIdx.x; i < row.end; i += kThreads) row.mask[i] = value;
}

// Ones above the key and at its first `ties` occurrences in the row; `seen` lie before this part.
template <class F>
__device__ void write(const Row<F>& row, Key<F> kth, int seen, int ties, Shared& shared) {
  int turn = 0;
  for (int start = row.begin; start < row.end; start += kThreads, turn ^= 1) {
    const int i = start + static_cast<int>(threadIdx.x);
    const Key<F> key = i < row.end ? key_of(row.scores[i]) : 0;
    const bool ties_here = i < row.end && key == kth;
    const Scan equal = block_scan<kThreads>(ties_here, shared.warps[turn]);
    const bool in = key > kth || (ties_here && seen + equal.before < ties);
    if (i < row.end) row.mask[i] = in ? F{1} : F{0};
    seen += equal.total;
  }
}

template <class F>
__device__ void write_all_ties(const Row<F>& row, Key<F> kth) {
  for (int i = row.begin + threadIdx.x; i < row.end; i += kThreads) {
    row.mask[i] = key_of(row.scores[i]) >= kth ? F{1} : F{0};
  }
}

template <class F, int kBlocks>
__global__ void __launch_bounds__(kThreads)
    select_rows(const F* scores, int64_t row_stride, const int64_t* k, int n, F* mask) {
  using Blocks = Team<kBlocks>;
  auto& shared = *reinterpret_cast<Shared*>(dynamic_shared());
  const int64_t index = blockIdx.x / kBlocks;
  const int block = Blocks::rank();
  const Row<F> row = {scores + index * row_stride, mask + index * n,
                      static_cast<int>(int64_t{n} * block / kBlocks),
                      static_cast<int>(int64_t{n} * (block + 1) / kBlocks), n};
  const int64_t wanted = k[index];

  if (threadIdx.x == 0) shared.bad = wanted < 0 || wanted > n;
  Prefix<Key<F>> prefix;
  prefix.rank = wanted < 1 || wanted > n ? 1 : static_cast<int>(wanted);
  int* histogram = shared.histogram[0];
  for (int turn = 0; prefix.shift > 0; turn ^= 1) {
    const int shift = prefix.shift > kDigitBits ? prefix.shift - kDigitBits : 0;
    histogram = shared.histogram[turn];
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads) histogram[bin] = 0;
    __syncthreads();
    count(row, prefix, shift, histogram, &shared.bad);
    Blocks::sync();
    choose_bin<kBlocks>(histogram, prefix.rank, shared, shared.warps[turn]);
    prefix.bits = prefix.bits << (prefix.shift - shift) | static_cast<Key<F>>(shared.chosen_bin);
    prefix.shift = shift;
    prefix.rank = shared.rank_in_bin;
  }

  // What the team's other blocks know: NaN in their parts, and the ties that lie before this one.
  bool bad = false;
  int seen = 0;
  for (int other = 0; other < kBlocks; ++other) {
    bad = bad || *Blocks::peer(&shared.bad, other) != 0;
    if (other < block) seen += Blocks::peer(histogram, other)[shared.chosen_bin];
  }
  const int equal = shared.at_bin;
  Blocks::sync();
  if (bad) {
    fill(row, std::numeric_limits<F>::quiet_NaN());
  } else if (wanted == 0) {
    fill(row, F{0});
  } else if (prefix.rank == equal) {
    write_all_ties(row, prefix.bits);
  } else {
    write(row, prefix.bits, seen, prefix.rank, shared);
  }
}

}  // namespace

template <class F>
cudaError_t topk_mask(const F* scores, int64_t row_stride, const int64_t* k, int64_t rows,
                      int64_t n, F* mask, cudaStream_t stream) {
  if (rows == 0 || n == 0) return cudaSuccess;
  // A short row is done before the blocks of a cluster have met.
  constexpr int64_t kShortRow = 4 * kThreads;
  const bool clusters = n > kShortRow && runs_in_clusters(select_rows<F, kClusterBlocks>);
  const unsigned blocks = clusters ? kClusterBlocks : 1;
  const Launch shape = {
      {static_cast<unsigned>(rows) * blocks, 1, 1}, {kThreads, 1, 1}, sizeof(Shared), blocks};
  const auto kernel = clusters ? select_rows<F, kClusterBlocks> : select_rows<F, 1>;
  return launch(kernel, shape, stream, scores, row_stride, k, static_cast<int>(n), mask);
}

template cudaError_t topk_mask(const float*, int64_t, const int64_t*, int64_t, int64_t, float*,
                               cudaStream_t);
template cudaError_t topk_mask(const double*, int64_t, const int64_t*, int64_t, int64_t, double*,
                               cudaStream_t);

}  // namespace metasparse::cuda
