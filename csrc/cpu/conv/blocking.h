// How the work of a call is cut, how big a block is, and the memory that a thread works in.
#pragma once

#include <algorithm>
#include <vector>

#include "../runtime/parallel.h"
#include "plan.h"

namespace metasparse::cpu {

// The planes of V and M are kept apart by a cache line more than their size: strides of a power of
// two would put all points of a tile into the same cache set.
inline constexpr int64_t kLineBytes = 64;

template <class T>
int64_t plane_stride(int64_t rows, int64_t width) {
  return rows * width + kLineBytes / static_cast<int64_t>(sizeof(T));
}

// The work of a call, cut into parts of the tiles of all tasks, times shares of the output
// channels.
struct WorkSplit {
  int64_t parts, shares;
};

// Units in order, cut into contiguous parts. A part and a task that share units are numbered by
// part + task, which no other such pair has: count + tasks slots hold the partial sums of all of
// them.
struct Parts {
  int64_t units, count;

  int64_t begin(int64_t part) const { return part * units / count; }
  int64_t of(int64_t unit) const { return ((unit + 1) * count - 1) / units; }
};

// How many parts and shares: heuristics.h, kPartLines and kShareChannels.
template <class T>
WorkSplit split_work(const TilePass<T>& pass, int64_t tasks) {
  const int64_t threads = thread_count();
  const int64_t lines = tasks * pass.tiles() * static_cast<int64_t>(sizeof(T)) / kLineBytes;
  int64_t parts = threads;
  while (threads % parts != 0 || (tasks % parts != 0 && lines < parts * heuristics::kPartLines))
    --parts;
  const int64_t most = std::max<int64_t>(1, pass.output_channels / heuristics::kShareChannels);
  return {parts, std::min(threads / parts, most)};
}

// Registers per block: as many as `preferred`, fewer where a block would overflow the cache or
// leave workers without work.
template <class T>
int block_vectors(const TilePass<T>& pass, int lanes, int64_t tasks, int64_t workers,
                  int preferred) {
  const int64_t register_bytes =
      (pass.points * pass.v_rows() +
       pass.accumulators * std::min(heuristics::kChannelChunk, pass.output_channels)) *
      lanes * static_cast<int64_t>(sizeof(T));
  const int64_t registers = divide_up(pass.tiles(), lanes);
  int vectors = preferred;
  while (vectors > 2 && (vectors * register_bytes > heuristics::kBlockBytes ||
                         tasks * divide_up(registers, vectors) < workers)) {
    --vectors;
  }
  return vectors;
}

// Chunks of input channels whose rows of V fit the first-level cache.
template <class T>
int64_t cache_chunks(const TilePass<T>& pass, int lanes, int vectors) {
  const int64_t row_bytes = int64_t{vectors} * lanes * static_cast<int64_t>(sizeof(T));
  return std::max<int64_t>(1, divide_up(pass.v_rows() * row_bytes, heuristics::kRowsBytes));
}

// The tiles of one task in registers of `lanes`, split evenly into blocks of at most `max_vectors`;
// into a few more where that shares the blocks of all tasks evenly among the workers.
class TileBlocks {
 public:
  TileBlocks(int64_t images, int64_t tile_rows, int64_t tile_columns, int lanes, int max_vectors,
             int64_t tasks, int64_t workers);

  int64_t count() const { return count_; }

  // The runs of block b, kept in `runs`.
  TileBlock block(int64_t b, std::vector<TileRun>& runs) const;

 private:
  int64_t images_, rows_, columns_;
  int lanes_;
  int64_t vectors_, count_;
};

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
