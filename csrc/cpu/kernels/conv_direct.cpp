// Data movement of the direct convolution: every pixel is a tile, every tap a row of V of its own.
//
// A run of neighbouring pixels reads, for one tap, neighbouring (stride 1), alternate (stride 2) or
// spread input pixels. Where each of these pieces lies is the same for all channels of all images
// of a block: the windows are computed once per block and then replayed channel by channel.
#include "conv_tables.h"
#include "vec.h"

namespace metasparse::cpu::METASPARSE_ISA {

namespace {

constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// First c >= 0 with step * c + shift >= bound.
constexpr int64_t first_at_least(int64_t bound, int64_t step, int64_t shift) {
  return bound <= shift ? 0 : (bound - shift + step - 1) / step;
}

// The windows of one tap; returns the end of the list.
template <class T>
LaneWindow* tap_windows(const TileBlock& block, const TapGrid& grid, int tap,
                        const Images<const T>& x, LaneWindow* out) {
  const int64_t step = grid.column_step, shift = grid.column_shift[tap];
  const int64_t first = first_at_least(0, step, shift);
  const int64_t last = first_at_least(x.width, step, shift);
  for (int32_t r = 0; r < block.run_count; ++r) {
    const TileRun& run = block.runs[r];
    const int64_t row = static_cast<int64_t>(grid.row_step) * run.row + grid.row_shift[tap];
    const bool inside = run.image >= 0 && row >= 0 && row < x.height;
    const int64_t line = (run.image * x.channels * x.height + row) * x.width + shift;
    for (int32_t done = 0; done < run.count; done += kLanes<T>) {
      const int64_t column = run.column + done;
      const int64_t count = smaller(kLanes<T>, run.count - done);
      const Lanes lanes =
          inside ? lanes_between(first - column, smaller(last - column, count), kLanes<T>) : 0;
      *out++ = {lanes == 0 ? 0 : line + step * column, run.lane + done, lanes};
    }
  }
  return out;
}

template <class T>
METASPARSE_INLINE Vec<T> load_spread(Lanes lanes, const T* p, int64_t step) {
  Vec<T> v{};
  METASPARSE_UNROLL
  for (int l = 0; l < kLanes<T>; ++l) {
    if (lanes >> l & 1) v[l] = p[l * step];
  }
  return v;
}

// Every other of 2 L - 1 values, from their first L and their last L.
template <int L>
struct AlternatePattern {
  static constexpr int at(int lane) { return 2 * lane < L ? 2 * lane : 2 * lane + 1; }
};

// Lanes l from p[2 l]: bits l of `lanes` become bits 2 l of the two registers that hold them.
template <class T>
METASPARSE_INLINE Vec<T> load_alternate(Lanes lanes, const T* p) {
  constexpr int L = kLanes<T>;
  if (lanes == kAllLanes<T>) {
    return shuffle<AlternatePattern<L>, T>(load_unaligned(p), load_unaligned(p + L - 1));
  }
  uint32_t spread = lanes;
  spread = (spread | spread << 8) & 0x00ff00ffu;
  spread = (spread | spread << 4) & 0x0f0f0f0fu;
  spread = (spread | spread << 2) & 0x33333333u;
  spread = (spread | spread << 1) & 0x55555555u;
  const Lanes low = spread & kAllLanes<T>;
  const Lanes high = spread >> L & kAllLanes<T>;
  const Vec<T> in[2] = {load_some(low, p), high == 0 ? Vec<T>{} : load_some(high, p + L)};
  Vec<T> out[2];
  deinterleave<T, 2>(in, out);
  return out[0];
}

// Step 1 or 2 known at compile time, 0: any. Asks for the same window of the next channel, `next`
// values on.
template <class T, int Step>
void replay(const LaneWindow* begin, const LaneWindow* end, int64_t step, const T* plane,
            int64_t next, T* row) {
  // A window stores a whole register: what it spills past its lanes the next window overwrites.
  for (const LaneWindow* w = begin; w != end; ++w) {
    const T* p = plane + w->offset;
    __builtin_prefetch(p + next);
    Vec<T> value;
    if constexpr (Step == 1) {
      value = w->lanes == kAllLanes<T> ? load_unaligned(p) : load_some(w->lanes, p);
    } else if constexpr (Step == 2) {
      value = load_alternate<T>(w->lanes, p);
    } else {
      value = load_spread<T>(w->lanes, p, step);
    }
    store_unaligned(row + w->lane, value);
  }
}

template <class T, int Step>
void gather_channels(const TileBlock& block, const TapGrid& grid, const Images<const T>& x,
                     const LaneWindow* windows, int64_t per_tap, T* v) {
  const int64_t width = static_cast<int64_t>(block.vectors) * kLanes<T>;
  for (int64_t channel = 0; channel < x.channels; ++channel) {
    const T* plane = x.data + channel * x.plane();
    const LaneWindow* w = windows;
    for (int32_t tap = 0; tap < grid.taps; ++tap, w += per_tap, v += width) {
      replay<T, Step>(w, w + per_tap, grid.column_step, plane, x.plane(), v);
    }
  }
}

template <class T>
void gather(const TileBlock& block, const TapGrid& grid, const Images<const T>& x,
            LaneWindow* windows, T* v) {
  LaneWindow* end = windows;
  for (int32_t tap = 0; tap < grid.taps; ++tap) {
    end = tap_windows<T>(block, grid, tap, x, end);
  }
  const int64_t per_tap = grid.taps == 0 ? 0 : (end - windows) / grid.taps;
  switch (grid.column_step) {
    case 1:
      return gather_channels<T, 1>(block, grid, x, windows, per_tap, v);
    case 2:
      return gather_channels<T, 2>(block, grid, x, windows, per_tap, v);
    default:
      return gather_channels<T, 0>(block, grid, x, windows, per_tap, v);
  }
}

// Runs whose pixels follow each other in memory (rows of one image) become one.
template <class T>
LaneRange* output_ranges(const TileBlock& block, const PixelGrid& grid, const Images<T>& y,
                         LaneRange* out) {
  const LaneRange* first = out;
  for (int32_t r = 0; r < block.run_count; ++r) {
    const TileRun& run = block.runs[r];
    if (run.image < 0) continue;
    const int64_t row = static_cast<int64_t>(grid.row_step) * run.row + grid.row_offset;
    const int64_t column = static_cast<int64_t>(grid.column_step) * run.column + grid.column_offset;
    const int64_t offset = (run.image * y.channels * y.height + row) * y.width + column;
    if (out != first && grid.column_step == 1 && out[-1].offset + out[-1].count == offset) {
      out[-1].count += run.count;
    } else {
      *out++ = {offset, run.lane, run.count};
    }
  }
  return out;
}

template <class T>
void drain(const TileBlock& block, const PixelGrid& grid, const T* m, const T* bias,
           int64_t channels, const Images<T>& y, LaneRange* ranges) {
  const int64_t width = static_cast<int64_t>(block.vectors) * kLanes<T>;
  const LaneRange* end = output_ranges<T>(block, grid, y, ranges);
  for (int64_t channel = 0; channel < channels; ++channel, m += width) {
    T* plane = y.data + channel * y.plane();
    const T shift = bias == nullptr ? T(0) : bias[channel];
    const Vec<T> shift_vector = broadcast(shift);
    for (const LaneRange* range = ranges; range != end; ++range) {
      const T* from = m + range->lane;
      T* to = plane + range->offset;
      const int32_t count = range->count;
      if (grid.column_step != 1) {
        for (int32_t l = 0; l < count; ++l) to[l * grid.column_step] = from[l] + shift;
        continue;
      }
      int32_t l = 0;
      for (; l + kLanes<T> <= count; l += kLanes<T>) {
        store_unaligned(to + l, load_unaligned(from + l) + shift_vector);
      }
      if (l < count) {
        store_some(lanes_between(0, count - l, kLanes<T>), to + l,
                   load_unaligned(from + l) + shift_vector);
      }
    }
  }
}

template <class T>
constexpr DirectKernels<T> kTable = {gather<T>, drain<T>};

}  // namespace

template <class T>
const DirectKernels<T>& direct_kernels() {
  return kTable<T>;
}

template const DirectKernels<float>& direct_kernels<float>();
template const DirectKernels<double>& direct_kernels<double>();

}  // namespace metasparse::cpu::METASPARSE_ISA
