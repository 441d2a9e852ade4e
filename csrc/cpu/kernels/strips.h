// Strips: rows of a block's tiles, side by side.
//
// Tiles of M columns in the lanes are a transposition of image rows: value l * M + j of a row is
// column j of tile l. To transpose in registers, the image rows that a block of tiles touches are
// first copied to strips, in which tile after tile follows without gaps, whatever rows of whatever
// images they come from; what lies outside the image becomes zeros there. Where the pieces of a
// block lie is the same for all channels: it is worked out once per block and replayed.
//
// A strip that was just written piece by piece cannot be forwarded to whole-register loads, so
// callers keep two and fill one channel ahead of the one they transform.
#pragma once

#include "../conv_types.h"
#include "vec.h"

namespace metasparse::cpu::METASPARSE_ISA {

// At most a register of one image row, repeated for the rows below it: those in `rows` exist.
struct StripPiece {
  int64_t offset;  // of the first row's first value from the channel's first
  int32_t place;   // in the strip
  uint32_t lanes;
  uint32_t rows;
};

// Where strips lie: `tile` columns per tile, `rows` of them, `row_gap` image rows apart, those of
// the tile (r, c) starting at the image's (row_step * r + row_shift, tile * c + column_shift).
struct StripShape {
  int32_t tile, rows;
  int32_t row_step, row_shift, column_shift;
  int32_t row_gap = 1;
};

METASPARSE_INLINE Lanes rows_inside(const StripShape& shape, int64_t row, int64_t height) {
  Lanes rows = 0;
  for (int32_t r = 0; r < shape.rows; ++r) {
    const int64_t actual = row + static_cast<int64_t>(r) * shape.row_gap;
    rows |= static_cast<Lanes>(actual >= 0 && actual < height) << r;
  }
  return rows;
}

METASPARSE_INLINE int64_t strip_pitch(const TileBlock& block, int tile, int lanes) {
  return (static_cast<int64_t>(block.vectors) * tile + 1) * lanes;  // a register of slack
}

// Pieces needed at most: one per run and one per register of the strip.
METASPARSE_INLINE int64_t strip_pieces(const TileBlock& block, int tile) {
  return block.run_count + static_cast<int64_t>(block.vectors) * tile;
}

// `count` columns of a run, from the one `skip` columns after its first on: in the strip from
// `place` on.
template <class T>
StripPiece* cut_run(const TileRun& run, const StripShape& shape, const Images<T>& x, int32_t skip,
                    int32_t count, int32_t place, StripPiece* out) {
  const int64_t row = static_cast<int64_t>(shape.row_step) * run.row + shape.row_shift;
  const Lanes rows = run.image < 0 ? 0 : rows_inside(shape, row, x.height);
  const int64_t first = static_cast<int64_t>(shape.tile) * run.column + shape.column_shift + skip;
  for (int32_t done = 0; done < count; done += kLanes<T>) {
    const int64_t column = first + done;
    const int64_t inside = x.width - column, rest = count - done;
    const Lanes lanes = lanes_between(-column, inside < rest ? inside : rest, kLanes<T>);
    if (rows == 0 || lanes == 0) {
      *out++ = {0, place + done, 0, 0};
    } else {
      const int64_t offset = run.image * x.image_channels * x.plane() + row * x.width + column;
      *out++ = {offset, place + done, lanes, rows};
    }
  }
  return out;
}

// The pieces of all tiles of a block, tile l from place l * tile on.
template <class T>
StripPiece* find_pieces(const TileBlock& block, const StripShape& shape, const Images<T>& x,
                        StripPiece* out) {
  for (int32_t r = 0; r < block.run_count; ++r) {
    const TileRun& run = block.runs[r];
    out = cut_run(run, shape, x, 0, run.count * shape.tile, run.lane * shape.tile, out);
  }
  return out;
}

// The rows of a piece lie where no hardware looks ahead, in planes far apart, so every piece asks
// for its like a few channels on. Memory takes longer than one channel does; the second-level cache
// has room for several, the first has not.
template <class T, int Rows>
METASPARSE_INLINE void ask_ahead(const T* p, int64_t width, int64_t plane) {
  constexpr int kChannels = 4, kSecondLevel = 2;
  METASPARSE_UNROLL
  for (int r = 0; r < Rows; ++r) {
    __builtin_prefetch(p + r * width + kChannels * plane, /*write*/ 0, kSecondLevel);
  }
}

// One channel's strips: `lines` turns the In image rows of a tile row into Out rows of strips. A
// piece stores whole registers: the next one overwrites what it spills. `next` values on lies the
// next channel.
template <class T, int In, int Out, class Lines>
METASPARSE_INLINE void fill_strips(const StripPiece* piece, const StripPiece* end, const T* plane,
                                   int64_t width, int64_t next, T* strips, int64_t pitch,
                                   Lines&& lines) {
  constexpr Lanes kAllRows = (Lanes{1} << In) - 1;
  for (; piece != end; ++piece) {
    const T* p = plane + piece->offset;
    Vec<T> in[In], out[Out];
    ask_ahead<T, In>(p, width, next);
    const LaneMask<T> mask = lane_mask<T>(piece->lanes);
    if (piece->rows != kAllRows) {
      METASPARSE_UNROLL
      for (int r = 0; r < In; ++r) {
        in[r] = piece->rows >> r & 1 ? load_masked(mask, p + r * width) : Vec<T>{};
      }
    } else if (piece->lanes != kAllLanes<T>) {
      METASPARSE_UNROLL
      for (int r = 0; r < In; ++r) in[r] = load_masked(mask, p + r * width);
    } else {
      METASPARSE_UNROLL
      for (int r = 0; r < In; ++r) in[r] = load_unaligned(p + r * width);
    }
    lines(in, out);
    METASPARSE_UNROLL
    for (int r = 0; r < Out; ++r) store_unaligned(strips + piece->place + r * pitch, out[r]);
  }
}

// The reverse: `lines` turns In rows of strips into Out image rows; what lies in the image is
// written to it.
template <class T, int In, int Out, class Lines>
METASPARSE_INLINE void drain_strips(const StripPiece* piece, const StripPiece* end, const T* strips,
                                    int64_t pitch, T* plane, int64_t width, int64_t next,
                                    Lines&& lines) {
  for (; piece != end; ++piece) {
    if (piece->rows == 0) continue;
    T* p = plane + piece->offset;
    Vec<T> in[In], out[Out];
    ask_ahead<T, Out>(p, width, next);  // a store waits for its line, too
    METASPARSE_UNROLL
    for (int r = 0; r < In; ++r) in[r] = load_unaligned(strips + piece->place + r * pitch);
    lines(in, out);
    METASPARSE_UNROLL
    for (int r = 0; r < Out; ++r) {
      if (piece->rows >> r & 1) store_some(piece->lanes, p + r * width, out[r]);
    }
  }
}

}  // namespace metasparse::cpu::METASPARSE_ISA
