// Images to the lines of tiles: the half of every gather that does not depend on the scheme.
//
// The rows of a tile are transformed down the image, in which a register holds neighbouring pixels,
// on their way to strips (strips.h); there one line of as many tiles as a register has lanes is
// loaded at a time. Where the scheme's inputs overlap, a line is longer than its tile: it shares
// columns with the tile beside it, which is one lane away. Only the outermost tile of a run has
// none there; what lies beside it comes from strips of its own, the margins.
#pragma once

#include "conv_tables.h"
#include "strips.h"
#include "tile_lanes.h"

namespace metasparse::cpu::METASPARSE_ISA {

// The columns of a line: those of its tile, and the first `shared` of the tile to the right, or the
// last `shared` of the tile to the left.
enum class Side { left, right };

template <int Tile, int Shared, Side Where = Side::right>
struct LineShape {
  static constexpr int tile = Tile, shared = Shared, columns = Tile + Shared;
  static constexpr bool left = Where == Side::left;
  static constexpr int own = left ? Shared : 0;          // the first column of the tile itself
  static constexpr int other = left ? 0 : Tile;          // of those that are shared
  static constexpr int lent = left ? Tile - Shared : 0;  // of those that it shares with another
};

template <int L, bool Left>
struct FromBeside {  // of two neighbouring registers: each lane's neighbour
  static constexpr int at(int lane) { return Left ? L - 1 + lane : lane + 1; }
};

// Bytes that gather_lines needs for lines of such a shape and `rows` rows of strips: the strips of
// two channels, then the pieces.
template <class T>
int64_t lines_bytes(const TileBlock& block, int tile, int shared, int rows) {
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

// The pieces of the margins, tile l's from place l * shared on: only those in the image.
template <class T, class Line>
StripPiece* find_margins(const TileBlock& block, const StripShape& shape, const Images<T>& x,
                         StripPiece* out) {
  for (int32_t r = 0; r < block.run_count; ++r) {
    const TileRun& run = block.runs[r];
    const int32_t skip = Line::left ? -Line::shared : run.count * shape.tile;
    StripPiece* margin = out;
    out = cut_run(run, shape, x, skip, Line::shared, outermost<Line>(run) * Line::shared, out);
    if (margin->rows == 0) out = margin;
  }
  return out;
}

// For every channel, row of strips and register: across(channel, row, register, line). `down` turns
// the In image rows of a tile row into Out rows of strips.
template <class T, class Line, int In, int Out, class Down, class Across>
METASPARSE_INLINE void gather_lines(const TileBlock& block, const StripShape& shape,
                                    const Images<const T>& x, void* scratch, Down&& down,
                                    Across&& across) {
  constexpr int L = kLanes<T>, M = Line::tile, S = Line::shared;
  const int64_t pitch = strip_pitch(block, M, L), margin_pitch = strip_pitch(block, S, L);
  const int64_t room = Out * (pitch + margin_pitch);
  T* rooms[2] = {static_cast<T*>(scratch), static_cast<T*>(scratch) + room};
  StripPiece* pieces = reinterpret_cast<StripPiece*>(rooms[1] + room);
  StripPiece* end = find_pieces(block, shape, x, pieces);
  StripPiece* margins_end = end;
  LaneMask<T> alone[kMaxVectors];
  if constexpr (S > 0) {
    margins_end = find_margins<const T, Line>(block, shape, x, end);
    find_outermost<T, Line>(block, alone);
    for (T* strips : rooms) {  // outside the image margins are zero
      memset(strips + Out * pitch, 0, static_cast<size_t>(Out * margin_pitch) * sizeof(T));
    }
  }

  const auto fill = [&](int64_t channel) {
    const T* plane = x.data + channel * x.plane();
    T* strips = rooms[channel & 1];
    fill_strips<T, In, Out>(pieces, end, plane, x.width, x.plane(), strips, pitch, down);
    fill_strips<T, In, Out>(end, margins_end, plane, x.width, x.plane(), strips + Out * pitch,
                            margin_pitch, down);
  };
  fill(0);
  for (int64_t channel = 0; channel < x.channels; ++channel) {
    if (channel + 1 < x.channels) fill(channel + 1);
    for (int r = 0; r < Out; ++r) {
      const T* strip = rooms[channel & 1] + r * pitch;
      const T* margin = rooms[channel & 1] + Out * pitch + r * margin_pitch;
      Vec<T> beside[S + 1] = {};  // what the register before lends
      for (int i = 0; i < block.vectors; ++i) {
        const int t = Line::left ? i : block.vectors - 1 - i;
        Vec<T> line[Line::columns];
        load_tiles<T, M>(strip + t * M * L, line + Line::own);
        if constexpr (S > 0) {
          load_tiles<T, S>(margin + t * S * L, line + Line::other);
          METASPARSE_UNROLL
          for (int c = 0; c < S; ++c) {
            const Vec<T> lent = line[Line::own + Line::lent + c];
            const Vec<T> first = Line::left ? beside[c] : lent;
            const Vec<T> second = Line::left ? lent : beside[c];
            const Vec<T> neighbour = shuffle<FromBeside<L, Line::left>, T>(first, second);
            line[Line::other + c] = blend(alone[t], line[Line::other + c], neighbour);
            beside[c] = lent;
          }
        }
        across(channel, r, t, line);
      }
    }
  }
}

}  // namespace metasparse::cpu::METASPARSE_ISA
