#pragma once
// The direct sparse convolution on the plain floating point units, without tensor cores: full
// precision, and work in proportion to the density. What a thread computes of it is its tile's
// business (conv_tiles.cuh).
//
// A block takes 32 destination channels and some slots of a few pixels each. A warp works on a few
// of the channels, so its branch on a kernel's bit is uniform: a pruned kernel costs a test.
// Neighbouring lanes hold neighbouring columns, so their loads from shared memory do not collide.
// Source channels pass through shared memory in chunks; while one is worked on, the next is under
// way (cp.async). The sum of two convolutions is a second turn with the same sums.
#include "conv_cut.cuh"
#include "conv_tiles.cuh"

namespace metasparse::cuda {

// One convolution of the sum.
template <class F>
struct Term {
  PackedKernels<F> packed;
  PerTask<F> source;
};

template <class F>
struct SparseConv {
  Term<F> terms[2];
  int count;  // of them
  PerTask<F> bias;
  F* destination;
  Planes from, to;
  int samples;
  int origin;   // of the units' patches
  int padding;  // of the convolution
  Cut cut;
};

// A chunk in shared memory; there are two.
template <class F>
struct Stage {
  F* kernels;  // (kChunk, 32, kKernelRoom)
  F* planes;   // (kChunk, images, patch_rows, patch_columns)
};

template <class F, class Tile>
class ConvBlock {
 public:
  static constexpr int kWarpRows = kDestinations / Tile::kPerThread;  // threads of a slot
  static constexpr int kThreads = Tile::kSlots * kWarpRows;

  __device__ explicit ConvBlock(const SparseConv<F>& conv)
      : conv_(conv), thread_(threadIdx.y * Tile::kSlots + threadIdx.x) {}

  __device__ void run() {
    locate();
    for (int term = 0; term < conv_.count; ++term) {
      if (term > 0) __syncthreads();  // until all have done with the list
      prepare(conv_.terms[term]);
      __syncthreads();
      add_term();
    }
    store();
  }

 private:
  // ---- shared memory: what is common, the kernels of both stages, the list, the planes of both
  // stages, offsets

  static constexpr int kKernels = Tile::kChunk * kDestinations * kKernelRoom;

  __device__ static Common<F>& common() { return *reinterpret_cast<Common<F>*>(dynamic_shared()); }
  __device__ static F* numbers() {
    return reinterpret_cast<F*>(dynamic_shared() + sizeof(Common<F>));
  }
  __device__ static Entry* entries() { return reinterpret_cast<Entry*>(numbers() + 2 * kKernels); }
  __device__ Stage<F> stage(int turn) const {
    auto* const planes = reinterpret_cast<F*>(entries() + entry_room(conv_.from.channels));
    return {numbers() + turn * kKernels, planes + turn * Tile::kChunk * conv_.cut.plane()};
  }
  __device__ int* offsets() const { return reinterpret_cast<int*>(stage(2).planes); }

  // ---- what the block covers

  __device__ int first_column() const {
    return static_cast<int>(blockIdx.x) % conv_.cut.column_tiles * conv_.cut.columns;
  }
  __device__ int first_row() const {
    const int tile = static_cast<int>(blockIdx.x) / conv_.cut.column_tiles % conv_.cut.row_tiles;
    return tile * conv_.cut.groups * Tile::kUnits;
  }
  __device__ int first_image() const {
    const Cut& cut = conv_.cut;
    return static_cast<int>(blockIdx.x) / (cut.column_tiles * cut.row_tiles) * cut.images;
  }

  // For every place of a staged plane its offset in a source plane, or -1 outside.
  __device__ void locate() {
    const Cut& cut = conv_.cut;
    const int top = Tile::kStep * first_row() - conv_.origin;
    const int left = Tile::kStep * first_column() - conv_.origin;
    const int64_t sample = conv_.from.channels * conv_.from.size();
    for (int place = thread_; place < cut.plane(); place += kThreads) {
      const int column = place % cut.patch_columns, row = place / cut.patch_columns;
      const int image = row / cut.patch_rows;
      const int y = top + row % cut.patch_rows;
      const int x = left + column;
      const bool inside = y >= 0 && y < conv_.from.height && x >= 0 && x < conv_.from.width &&
                          first_image() + image < conv_.samples;
      offsets()[place] = inside ? static_cast<int>(image * sample + y * conv_.from.width + x) : -1;
    }
  }

  // The list.
  __device__ void prepare(const Term<F>& term) {
    const PackedKernels<F>& packed = term.packed;
    const int64_t list = packed.list(blockIdx.z, blockIdx.y);
    const int count = packed.counts[list];
    for (int e = thread_; e < count; e += kThreads) {
      entries()[e] = packed.entries[list * packed.sources + e];
    }
    if (thread_ == 0) {
      common() = {term.source.data + blockIdx.z * term.source.task_stride +
                      first_image() * conv_.from.channels * conv_.from.size(),
                  packed.kernels + list * packed.sources * kDestinations * kKernelRoom, count};
    }
  }

  __device__ void add_term() {
    fetch(0, stage(0));
    for (int first = 0, turn = 0; first < common().count; first += Tile::kChunk, turn ^= 1) {
      fetch(first + Tile::kChunk, stage(turn ^ 1));
      copy_async_wait<1>();
      __syncthreads();
      consume(first, stage(turn));
      __syncthreads();
    }
  }

  // Starts the copies of a chunk of the list; beyond its end, none.
  __device__ void fetch(int first, Stage<F> stage) {
    constexpr int kPerCopy = 16 / sizeof(F), kCopies = kKernelRoom / kPerCopy;
    const int last = min(Tile::kChunk, common().count - first);
    const F* const kernels = common().kernels;
#pragma unroll 2  // more takes registers that the sums want
    for (int e = thread_; e < last * kDestinations * kCopies; e += kThreads) {
      const int kernel = e / kCopies;
      if (!(entries()[first + kernel / kDestinations].active >> kernel % kDestinations & 1))
        continue;
      copy_async<16>(stage.kernels + e * kPerCopy,
                     kernels + int64_t{first} * kDestinations * kKernelRoom + e * kPerCopy, true);
    }
    const F* const source = common().source;
    const int plane = conv_.cut.plane();
    const int64_t size = conv_.from.size();
    for (int place = thread_; place < plane; place += kThreads) {
      const int offset = offsets()[place];
      for (int c = 0; c < last; ++c) {
        copy_async<sizeof(F)>(stage.planes + c * plane + place,
                              source + entries()[first + c].source * size + max(offset, 0),
                              offset >= 0);
      }
    }
    copy_async_commit();
  }

  __device__ int slot_image() const { return threadIdx.x / (conv_.cut.columns * conv_.cut.groups); }
  __device__ int slot_row() const {
    return threadIdx.x / conv_.cut.columns % conv_.cut.groups * Tile::kUnits;
  }
  __device__ int slot_column() const { return threadIdx.x % conv_.cut.columns; }

  __device__ void consume(int first, Stage<F> stage) {
    const Cut& cut = conv_.cut;
    if (slot_image() >= cut.images) return;
    const int plane = cut.plane();
    const F* window =
        stage.planes +
        (slot_image() * cut.patch_rows + Tile::kStep * slot_row()) * cut.patch_columns +
        Tile::kStep * slot_column();
    const F* kernels = stage.kernels + threadIdx.y * Tile::kPerThread * kKernelRoom;
    const int last = min(Tile::kChunk, common().count - first);
    for (int c = 0; c < last; ++c, window += plane, kernels += kDestinations * kKernelRoom) {
      const uint32_t bits =
          entries()[first + c].active >> (Tile::kPerThread * threadIdx.y) & kOwnBits;
      if (bits == 0) continue;
      F patch[Tile::kPatchRows][Tile::kWindow];
#pragma unroll
      for (int r = 0; r < Tile::kPatchRows; ++r) {
#pragma unroll
        for (int q = 0; q < Tile::kWindow; ++q) patch[r][q] = window[r * cut.patch_columns + q];
      }
#pragma unroll
      for (int d = 0; d < Tile::kPerThread; ++d) {
        if (!(bits >> d & 1)) continue;
        F kernel[kTaps];
        load_kernel(kernels + d * kKernelRoom, kernel);
        Tile::accumulate(kernel, patch, sums_[d]);
      }
    }
  }

  // By 16 bytes, all lanes of a warp from one address.
  static __device__ void load_kernel(const F* from, F (&kernel)[kTaps]) {
    struct alignas(16) Piece {
      F values[16 / sizeof(F)];
    };
    constexpr int kPerPiece = 16 / sizeof(F);
#pragma unroll
    for (int piece = 0; piece < (kTaps + kPerPiece - 1) / kPerPiece; ++piece) {
      const Piece values = reinterpret_cast<const Piece*>(from)[piece];
#pragma unroll
      for (int v = 0; v < kPerPiece; ++v) {
        const int k = piece * kPerPiece + v;
        if (k < kTaps) kernel[k] = values.values[v];
      }
    }
  }

  __device__ void store() const {
    const int image = first_image() + slot_image();
    if (slot_image() >= conv_.cut.images || image >= conv_.samples) return;
    const Pixel unit = {first_row() + slot_row(), first_column() + slot_column()};
    if (unit.column >= conv_.cut.unit_columns) return;
    const int64_t sample = int64_t{static_cast<int>(blockIdx.z)} * conv_.samples + image;
#pragma unroll
    for (int d = 0; d < Tile::kPerThread; ++d) {
      const int channel =
          static_cast<int>(blockIdx.y * kDestinations + threadIdx.y * Tile::kPerThread) + d;
      if (channel >= conv_.to.channels) return;
      F* const plane = conv_.destination + (sample * conv_.to.channels + channel) * conv_.to.size();
      const F bias = conv_.bias.data == nullptr
                         ? F{0}
                         : conv_.bias.data[blockIdx.z * conv_.bias.task_stride + channel];
#pragma unroll
      for (int output = 0; output < Tile::kOutputs; ++output) {
        const Pixel at = Tile::pixel(output, unit, conv_.padding);
        if (at.row >= 0 && at.row < conv_.to.height && at.column >= 0 &&
            at.column < conv_.to.width) {
          plane[int64_t{at.row} * conv_.to.width + at.column] = sums_[d][output] + bias;
        }
      }
    }
  }

  static constexpr uint32_t kOwnBits = (1u << Tile::kPerThread) - 1;

  const SparseConv<F>& conv_;
  const int thread_;
  F sums_[Tile::kPerThread][Tile::kOutputs] = {};
};

// Grid: pieces of a task's images, blocks of destination channels, tasks.
template <class F, class Tile>
__global__ void __launch_bounds__(ConvBlock<F, Tile>::kThreads, 1)
    sparse_conv(const __grid_constant__ SparseConv<F> conv) {
  ConvBlock<F, Tile>(conv).run();
}

template <class F, class Tile>
cudaError_t run_sparse(const SparseConv<F>& conv, int64_t tasks, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(conv.terms[0].packed.blocks);
  const Launch shape = {
      {static_cast<unsigned>(conv.cut.blocks()), blocks, static_cast<unsigned>(tasks)},
      {Tile::kSlots, ConvBlock<F, Tile>::kWarpRows, 1},
      shared_bytes<F, Tile>(conv.cut, conv.from.channels),
      1};
  return launch(sparse_conv<F, Tile>, shape, stream, conv);
}

}  // namespace metasparse::cuda
