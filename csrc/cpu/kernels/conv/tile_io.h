// Between images and tiles in registers, independent of the algorithm.
//
// Strips: rows of a block's tiles, side by side.
//
// Tiles of M columns in the lanes are a transposition of image rows: value l * M + j of a row is
// column j of tile l. To transpose in registers, the image rows that a block of tiles touches are
// first copied to strips, in which tile after tile follows without gaps, whatever rows of whatever
// images they come from; what lies outside the image becomes zeros there. Where the pieces of a
// block lie is the same for all channels: it is worked out once per block and replayed.
//
// Store-to-load forwarding fails from a strip that was just written piece by piece to whole
// registers, so callers keep two and fill one channel ahead of the one they transform.
//
// The rows of a tile are transformed down the image, in which a register holds neighbouring pixels,
// on their way to strips; there one line of as many tiles as a register has lanes is
// loaded at a time. Where the algorithm's inputs overlap, a line is longer than its tile: it shares
// columns with the tile beside it, which is one lane away. Only the outermost tile of a run has
// none there; what lies beside it comes from strips of its own, the halo.
#pragma once

#include "../vec.h"
#include "tables.h"
#include "tile_lanes.h"

namespace metasparse::cpu::METASPARSE_ISA {

// ---- strips ------------------------------------------------------------------------------------

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

// The hardware prefetcher does not cover the rows of a piece, in planes far apart: every piece asks
// for its like a few channels on. Memory takes longer than one channel does; the second-level cache
// has room for several, the first has not.
template <class T, int Rows>
METASPARSE_INLINE void prefetch_channels(const T* p, int64_t width, int64_t plane) {
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
METASPARSE_INLINE void load_strips(const StripPiece* piece, const StripPiece* end, const T* plane,
                                   int64_t width, int64_t next, T* strips, int64_t pitch,
                                   Lines&& lines) {
  constexpr Lanes kAllRows = (Lanes{1} << In) - 1;
  for (; piece != end; ++piece) {
    const T* p = plane + piece->offset;
    Vec<T> in[In], out[Out];
    prefetch_channels<T, In>(p, width, next);
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
METASPARSE_INLINE void store_strips(const StripPiece* piece, const StripPiece* end, const T* strips,
                                    int64_t pitch, T* plane, int64_t width, int64_t next,
                                    Lines&& lines) {
  for (; piece != end; ++piece) {
    if (piece->rows == 0) continue;
    T* p = plane + piece->offset;
    Vec<T> in[In], out[Out];
    prefetch_channels<T, Out>(p, width, next);  // a store waits for its line, too
    METASPARSE_UNROLL
    for (int r = 0; r < In; ++r) in[r] = load_unaligned(strips + piece->place + r * pitch);
    lines(in, out);
    METASPARSE_UNROLL
    for (int r = 0; r < Out; ++r) {
      if (piece->rows >> r & 1) store_some(piece->lanes, p + r * width, out[r]);
    }
  }
}

// ---- lines of tiles ----------------------------------------------------------------------------

// The columns of a line: those of its tile, and the first `shared` of the tile to the right, or the
// last `shared` of the tile to the left.
enum class Side { left, right };

template <int Tile, int Shared, Side Where = Side::right>
struct LineShape {
  static constexpr int tile = Tile, shared = Shared, columns = Tile + Shared;
  static constexpr bool left = Where == Side::left;
  static constexpr int own = left ? Shared : 0;             // the first column of the tile itself
  static constexpr int other = left ? 0 : Tile;             // of those that are shared
  static constexpr int to_halo = left ? Tile - Shared : 0;  // of those that it shares with another
};

template <int L, bool Left>
struct FromNeighbour {  // of two neighbouring registers: each lane's neighbour
  static constexpr int at(int lane) { return Left ? L - 1 + lane : lane + 1; }
};

// Bytes that load_tile_lines needs for lines of such a shape and `rows` rows of strips: the strips
// of two channels, then the pieces.
template <class T>
int64_t tile_lines_bytes(const TileBlock& block, int tile, int shared, int rows) {
  const int64_t pitch = strip_pitch(block, tile, kLanes<T>) + strip_pitch(block, shared, kLanes<T>);
  return 2 * rows * pitch * static_cast<int64_t>(sizeof(T)) +
         (strip_pieces(block, tile) + block.run_count) * static_cast<int64_t>(sizeof(StripPiece));
}

// The outermost tile of a run on the side where lines leave their tiles.
template <class Line>
METASPARSE_INLINE int32_t outermost(const TileRun& run) {
  return run.lane + (Line::left ? 0 : run.count - 1);
}

template <class T, class Line>
void find_outermost(const TileBlock& block, LaneMask<T>* masks) {
  Lanes lanes[kMaxVectors] = {};
  for (int32_t r = 0; r < block.run_count; ++r) {
    const int32_t lane = outermost<Line>(block.runs[r]);
    lanes[lane / kLanes<T>] |= Lanes{1} << lane % kLanes<T>;
  }
  for (int t = 0; t < block.vectors; ++t) masks[t] = lane_mask<T>(lanes[t]);
}

// The pieces of the halo, tile l's from place l * shared on: only those in the image.
template <class T, class Line>
StripPiece* find_halo(const TileBlock& block, const StripShape& shape, const Images<T>& x,
                      StripPiece* out) {
  for (int32_t r = 0; r < block.run_count; ++r) {
    const TileRun& run = block.runs[r];
    const int32_t skip = Line::left ? -Line::shared : run.count * shape.tile;
    StripPiece* halo = out;
    out = cut_run(run, shape, x, skip, Line::shared, outermost<Line>(run) * Line::shared, out);
    if (halo->rows == 0) out = halo;
  }
  return out;
}

// For every channel, row of strips and register: across(channel, row, register, line). `down` turns
// the In image rows of a tile row into Out rows of strips.
template <class T, class Line, int In, int Out, class Down, class Across>
METASPARSE_INLINE void load_tile_lines(const TileBlock& block, const StripShape& shape,
                                       const Images<const T>& x, void* scratch, Down&& down,
                                       Across&& across) {
  constexpr int L = kLanes<T>, M = Line::tile, S = Line::shared;
  const int64_t pitch = strip_pitch(block, M, L), halo_pitch = strip_pitch(block, S, L);
  const int64_t room = Out * (pitch + halo_pitch);
  T* rooms[2] = {static_cast<T*>(scratch), static_cast<T*>(scratch) + room};
  StripPiece* pieces = reinterpret_cast<StripPiece*>(rooms[1] + room);
  StripPiece* end = find_pieces(block, shape, x, pieces);
  StripPiece* halo_end = end;
  LaneMask<T> alone[kMaxVectors];
  if constexpr (S > 0) {
    halo_end = find_halo<const T, Line>(block, shape, x, end);
    find_outermost<T, Line>(block, alone);
    for (T* strips : rooms) {  // outside the image the halo is zero
      memset(strips + Out * pitch, 0, static_cast<size_t>(Out * halo_pitch) * sizeof(T));
    }
  }

  const auto fill = [&](int64_t channel) {
    const T* plane = x.data + channel * x.plane();
    T* strips = rooms[channel & 1];
    load_strips<T, In, Out>(pieces, end, plane, x.width, x.plane(), strips, pitch, down);
    load_strips<T, In, Out>(end, halo_end, plane, x.width, x.plane(), strips + Out * pitch,
                            halo_pitch, down);
  };
  fill(0);
  for (int64_t channel = 0; channel < x.channels; ++channel) {
    if (channel + 1 < x.channels) fill(channel + 1);
    for (int r = 0; r < Out; ++r) {
      const T* strip = rooms[channel & 1] + r * pitch;
      const T* halo = rooms[channel & 1] + Out * pitch + r * halo_pitch;
      Vec<T> beside[S + 1] = {};  // the halo from the register before
      for (int i = 0; i < block.vectors; ++i) {
        const int t = Line::left ? i : block.vectors - 1 - i;
        Vec<T> line[Line::columns];
        load_tiles<T, M>(strip + t * M * L, line + Line::own);
        if constexpr (S > 0) {
          load_tiles<T, S>(halo + t * S * L, line + Line::other);
          METASPARSE_UNROLL
          for (int c = 0; c < S; ++c) {
            const Vec<T> mine = line[Line::own + Line::to_halo + c];
            const Vec<T> first = Line::left ? beside[c] : mine;
            const Vec<T> second = Line::left ? mine : beside[c];
            const Vec<T> neighbour = shuffle<FromNeighbour<L, Line::left>, T>(first, second);
            line[Line::other + c] = blend(alone[t], line[Line::other + c], neighbour);
            beside[c] = mine;
          }
        }
        across(channel, r, t, line);
      }
    }
  }
}

}  // namespace metasparse::cpu::METASPARSE_ISA
