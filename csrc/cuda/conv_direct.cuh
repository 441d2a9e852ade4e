#pragma once
// Direct sparse convolution on the plain floating point units, without tensor cores: full
// precision, and work in proportion to the density.
//
// A block takes 32 destination channels and up to 128 slots of a few pixels each. A warp works on
// eight of the channels, so its branch on a kernel's bit is uniform: a pruned kernel costs a test.
// Neighbouring lanes hold neighbouring columns, so their loads from shared memory do not collide.
// Source channels pass through shared memory in chunks; while one is worked on, the next is under
// way (cp.async).
#include <algorithm>

#include "conv_pack.cuh"
#include "conv_tiles.cuh"
#include "device.cuh"

namespace metasparse::cuda {

constexpr int kSlots = 128;
constexpr int kPerThread = 8;                          // destination channels
constexpr int kWarpRows = kDestinations / kPerThread;  // slots are worked on by so many threads
constexpr int kConvThreads = kSlots * kWarpRows;

// A picture of `channels` planes per sample.
struct Planes {
  int channels, height, width;

  __host__ __device__ int64_t size() const { return int64_t{height} * width; }
};

// How the units of a task's pictures are cut into blocks. A slot is (image, row group, column).
struct Cut {
  int unit_rows, unit_columns;               // of a picture
  int columns, groups, images;               // of a block
  int column_tiles, row_tiles, image_tiles;  // of a task
  int patch_rows, patch_columns;             // of the source, for one image of a block

  __host__ __device__ int plane() const { return images * patch_rows * patch_columns; }
  __host__ int64_t blocks() const { return int64_t{column_tiles} * row_tiles * image_tiles; }
};

// What the threads of a block all know. In shared memory: registers are for the sums.
template <class F>
struct alignas(16) Common {
  const F *source, *kernels;  // of the block's first image; of its list
  int count;                  // entries of the list
};

template <class F, class Tile>
size_t shared_bytes(const Cut& cut, int64_t sources) {
  const size_t chunk =
      Tile::kChunk * (static_cast<size_t>(kDestinations) * kPaddedTaps + cut.plane());
  return sizeof(Common<F>) + 2 * chunk * sizeof(F) + static_cast<size_t>(sources) * sizeof(Entry) +
         static_cast<size_t>(cut.plane()) * sizeof(int);
}

// Whole pictures where they are small, else bands; as many slots in use as shared memory allows.
template <class F, class Tile>
Cut make_cut(int64_t unit_rows, int64_t unit_columns, int64_t samples, int64_t sources) {
  constexpr int64_t kColumns = 32;
  Cut cut{};
  cut.unit_rows = static_cast<int>(unit_rows);
  cut.unit_columns = static_cast<int>(unit_columns);
  cut.column_tiles = static_cast<int>(ceil_div(unit_columns, kColumns));
  cut.columns = static_cast<int>(ceil_div(unit_columns, cut.column_tiles));
  const int all_groups = static_cast<int>(ceil_div(unit_rows, Tile::kUnits));
  const auto resize = [&](int groups, int images) {
    cut.groups = groups;
    cut.images = images;
    cut.row_tiles = static_cast<int>(ceil_div(all_groups, groups));
    cut.image_tiles = static_cast<int>(ceil_div(samples, images));
    cut.patch_rows = Tile::kStep * (groups * Tile::kUnits - 1) + Tile::kWindow;
    cut.patch_columns = Tile::kStep * (cut.columns - 1) + Tile::kWindow;
  };
  const int room = kSlots / cut.columns;
  const int tiles = static_cast<int>(ceil_div(all_groups, std::min(room, all_groups)));
  resize(static_cast<int>(ceil_div(all_groups, tiles)), 1);
  const bool whole = cut.column_tiles == 1 && cut.row_tiles == 1;
  if (whole) resize(cut.groups, static_cast<int>(std::min(int64_t{room / cut.groups}, samples)));
  while (shared_bytes<F, Tile>(cut, sources) > kSharedLimit && (cut.images > 1 || cut.groups > 1)) {
    if (cut.images > 1) {
      resize(cut.groups, cut.images - 1);
    } else {
      resize(cut.groups - 1, 1);
    }
  }
  return cut;
}

template <class F>
struct DirectConv {
  PackedKernels<F> packed;
  PerTask<F> source, bias;
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
  F* kernels;  // (kChunk, 32, 12)
  F* planes;   // (kChunk, images, patch_rows, patch_columns)
};

template <class F, class Tile>
class DirectBlock {
 public:
  __device__ explicit DirectBlock(const DirectConv<F>& conv)
      : conv_(conv), thread_(threadIdx.y * kSlots + threadIdx.x) {}

  __device__ void run() {
    prepare();
    __syncthreads();
    fetch(0, stage(0));
    for (int first = 0, turn = 0; first < common().count; first += Tile::kChunk, turn ^= 1) {
      fetch(first + Tile::kChunk, stage(turn ^ 1));
      copy_async_wait<1>();
      __syncthreads();
      consume(first, stage(turn));
      __syncthreads();
    }
    store();
  }

 private:
  // ---- shared memory: what is common, the kernels of both stages, the list, the planes of both
  // stages, offsets

  static constexpr int kKernels = Tile::kChunk * kDestinations * kPaddedTaps;

  __device__ static Common<F>& common() { return *reinterpret_cast<Common<F>*>(dynamic_shared()); }
  __device__ static F* numbers() {
    return reinterpret_cast<F*>(dynamic_shared() + sizeof(Common<F>));
  }
  __device__ static Entry* entries() { return reinterpret_cast<Entry*>(numbers() + 2 * kKernels); }
  __device__ Stage<F> stage(int turn) const {
    auto* const planes = reinterpret_cast<F*>(entries() + conv_.packed.sources);
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

  // The list, and for every place of a staged plane its offset in a source plane, or -1 outside.
  __device__ void prepare() {
    const PackedKernels<F>& packed = conv_.packed;
    const int64_t list = packed.list(blockIdx.z, blockIdx.y);
    const int count = packed.counts[list];
    for (int e = thread_; e < count; e += kConvThreads) {
      entries()[e] = packed.entries[list * packed.sources + e];
    }
    if (thread_ == 0) {
      common() = {conv_.source.data + blockIdx.z * conv_.source.task_stride +
                      first_image() * conv_.from.channels * conv_.from.size(),
                  packed.kernels + list * packed.sources * kDestinations * kPaddedTaps, count};
    }
    const Cut& cut = conv_.cut;
    const int top = Tile::kStep * first_row() - conv_.origin;
    const int left = Tile::kStep * first_column() - conv_.origin;
    const int64_t sample = conv_.from.channels * conv_.from.size();
    for (int place = thread_; place < cut.plane(); place += kConvThreads) {
      const int column = place % cut.patch_columns, row = place / cut.patch_columns;
      const int image = row / cut.patch_rows;
      const int y = top + row % cut.patch_rows;
      const int x = left + column;
      const bool inside = y >= 0 && y < conv_.from.height && x >= 0 && x < conv_.from.width &&
                          first_image() + image < conv_.samples;
      offsets()[place] = inside ? static_cast<int>(image * sample + y * conv_.from.width + x) : -1;
    }
  }

  // Starts the copies of a chunk of the list; beyond its end, none.
  __device__ void fetch(int first, Stage<F> stage) {
    constexpr int kPerCopy = 16 / sizeof(F), kCopies = kPaddedTaps / kPerCopy;
    const int last = min(Tile::kChunk, common().count - first);
    const F* const kernels = common().kernels;
    for (int e = thread_; e < last * kDestinations * kCopies; e += kConvThreads) {
      const int kernel = e / kCopies;
      if (!(entries()[first + kernel / kDestinations].active >> kernel % kDestinations & 1))
        continue;
      copy_async<16>(stage.kernels + e * kPerCopy,
                     kernels + int64_t{first} * kDestinations * kPaddedTaps + e * kPerCopy, true);
    }
    const F* const source = common().source;
    const int plane = conv_.cut.plane();
    const int64_t size = conv_.from.size();
    for (int place = thread_; place < plane; place += kConvThreads) {
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
    const F* kernels = stage.kernels + threadIdx.y * kPerThread * kPaddedTaps;
    const int last = min(Tile::kChunk, common().count - first);
    for (int c = 0; c < last; ++c, window += plane, kernels += kDestinations * kPaddedTaps) {
      const uint32_t bits = entries()[first + c].active >> (kPerThread * threadIdx.y) & 0xff;
      if (bits == 0) continue;
      F patch[Tile::kPatchRows][Tile::kWindow];
#pragma unroll
      for (int r = 0; r < Tile::kPatchRows; ++r) {
#pragma unroll
        for (int q = 0; q < Tile::kWindow; ++q) patch[r][q] = window[r * cut.patch_columns + q];
      }
#pragma unroll
      for (int d = 0; d < kPerThread; ++d) {
        if (!(bits >> d & 1)) continue;
        F taps[kTaps];
        load_taps(kernels + d * kPaddedTaps, taps);
        Tile::accumulate(taps, patch, sums_[d]);
      }
    }
  }

  // By 16 bytes, all lanes of a warp from one address.
  static __device__ void load_taps(const F* kernel, F (&taps)[kTaps]) {
    struct alignas(16) Piece {
      F values[16 / sizeof(F)];
    };
    constexpr int kPerPiece = 16 / sizeof(F);
#pragma unroll
    for (int piece = 0; piece < (kTaps + kPerPiece - 1) / kPerPiece; ++piece) {
      const Piece values = reinterpret_cast<const Piece*>(kernel)[piece];
#pragma unroll
      for (int v = 0; v < kPerPiece; ++v) {
        if (piece * kPerPiece + v < kTaps) taps[piece * kPerPiece + v] = values.values[v];
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
    for (int d = 0; d < kPerThread; ++d) {
      const int channel =
          static_cast<int>(blockIdx.y * kDestinations + threadIdx.y * kPerThread) + d;
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

  const DirectConv<F>& conv_;
  const int thread_;
  F sums_[kPerThread][Tile::kOutputs] = {};
};

// Grid: pieces of a task's pictures, blocks of destination channels, tasks.
template <class F, class Tile>
__global__ void __launch_bounds__(kConvThreads)
    direct_conv(const __grid_constant__ DirectConv<F> conv) {
  DirectBlock<F, Tile>(conv).run();
}

template <class F, class Tile>
cudaError_t run_direct(const DirectConv<F>& conv, int64_t tasks, cudaStream_t stream) {
  const Launch shape = {{static_cast<unsigned>(conv.cut.blocks()),
                         static_cast<unsigned>(conv.packed.blocks), static_cast<unsigned>(tasks)},
                        {kSlots, kWarpRows, 1},
                        shared_bytes<F, Tile>(conv.cut, conv.packed.sources),
                        1};
  return launch(direct_conv<F, Tile>, shape, stream, conv);
}

}  // namespace metasparse::cuda
