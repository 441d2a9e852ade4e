// How the work of a call is cut, how big a block is, and the memory that a thread works in: shared
// by both halves of the engine.
#pragma once

#include <algorithm>
#include <vector>

#include "conv_scheme.h"
#include "parallel.h"

namespace metasparse::cpu {

// V and M of a block should stay in the second-level cache, the rows of V that one list reads in
// the first; the planes of V and M are kept apart by a cache line more than their size, because
// strides of a power of two would put all points of a tile into the same cache set.
inline constexpr int64_t kBlockBytes = int64_t{3} << 20;
inline constexpr int64_t kRowsBytes = int64_t{32} << 10;
inline constexpr int64_t kLineBytes = 64;
// Output channels that go through M at once.
inline constexpr int64_t kChannelChunk = 64;

template <class T>
int64_t plane_stride(int64_t rows, int64_t width) {
  return rows * width + kLineBytes / static_cast<int64_t>(sizeof(T));
}

// The work of a call, cut into parts of the tiles of all tasks, times shares of the output
// channels.
struct WorkSplit {
  int64_t parts, shares;
};

// Units in order, cut into contiguous parts. Parts and the tasks that their units belong to form a
// staircase, on which part + task never repeats: that sum numbers what a part has of a task.
struct Parts {
  int64_t units, count;

  int64_t begin(int64_t part) const { return part * units / count; }
  int64_t of(int64_t unit) const { return ((unit + 1) * count - 1) / units; }
};

// For torch's threads. A further part of a task costs weights or partial sums that travel from one
// core's cache to another's, a further share gathers V again: parts are whole tasks, therefore, or
// have this many cache lines of tiles. Measured on Zen 4, two threads, 64 channels: shares are 1.05
// to 1.3 times faster for less, and up to 1.2 times slower for twice as much.
inline constexpr int64_t kPartLines = 3;
inline constexpr int64_t kShareChannels = 8;

template <class T>
WorkSplit split_work(const ConvPass<T>& pass, int64_t tasks) {
  const int64_t threads = thread_count();
  const int64_t lines = tasks * pass.tiles() * static_cast<int64_t>(sizeof(T)) / kLineBytes;
  int64_t parts = threads;
  while (threads % parts != 0 || (tasks % parts != 0 && lines < parts * kPartLines)) --parts;
  const int64_t most = std::max<int64_t>(1, pass.output_channels / kShareChannels);
  return {parts, std::min(threads / parts, most)};
}

// Registers of lanes per block of a product: two output rows of a block are summed in registers, of
// which AVX-512 has 32, but twice as long, and the others 16.
template <class T>
int product_vectors(int lanes) {
  return lanes * static_cast<int>(sizeof(T)) == 64 ? 4 : 6;
}

// Registers per block: as many as `preferred`, fewer where a block would overflow the cache or
// leave workers without work.
template <class T>
int block_vectors(const ConvPass<T>& pass, int lanes, int64_t tasks, int64_t workers,
                  int preferred) {
  const int64_t register_bytes = (pass.points * pass.source_rows() +
                                  pass.columns * std::min(kChannelChunk, pass.output_channels)) *
                                 lanes * static_cast<int64_t>(sizeof(T));
  const int64_t registers = divide_up(pass.tiles(), lanes);
  int vectors = preferred;
  while (vectors > 2 && (vectors * register_bytes > kBlockBytes ||
                         tasks * divide_up(registers, vectors) < workers)) {
    --vectors;
  }
  return vectors;
}

// Chunks of input channels whose rows of V fit the first-level cache.
template <class T>
int64_t cache_chunks(const ConvPass<T>& pass, int lanes, int vectors) {
  const int64_t row_bytes = int64_t{vectors} * lanes * static_cast<int64_t>(sizeof(T));
  return std::max<int64_t>(1, divide_up(pass.source_rows() * row_bytes, kRowsBytes));
}

// Memory of one thread while it works on one block.
struct Workspace {
  ScratchBuffer v, m, transform;
  std::vector<TileRun> runs;
};

inline Workspace& workspace() {
  thread_local Workspace mine;
  return mine;
}

}  // namespace metasparse::cpu
