// Cutting the tiles of a task into blocks of a few registers.
#pragma once

#include <cstdint>
#include <vector>

#include "conv_types.h"

namespace metasparse::cpu {

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

}  // namespace metasparse::cpu
