// Data movement of the direct convolution: every pixel is a tile, every tap a row of V of its own.
//
// A run of neighbouring pixels reads, for one tap, neighbouring (stride 1), alternate (stride 2) or
// spread input pixels. Where each of these pieces lies is the same for all channels of all images
// of a block: the windows are computed once per block and then replayed channel by channel.
#include "conv_tables.h"
#include "interleave.h"
#include "vec.h"

namespace metasparse::cpu::METASPARSE_ISA {

namespace {

constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// First c >= 0 with step * c + shift >= bound.
constexpr int64_t first_at_least(int64_t bound, int64_t step, int64_t shift) {
  return bound <= shift ? 0 : (bound - shift + step - 1) / step;
}

// The lanes of a window as its loads want them. At step 2 a window is two registers wide: lane l is
// bit 2 l.
template <class T, int Step>
constexpr uint32_t kWholeWindow =
    Step == 2 ? static_cast<uint32_t>(0x5555555555555555u >> (64 - 2 * kLanes<T>)) : kAllLanes<T>;

template <int Step>
METASPARSE_INLINE uint32_t spread(Lanes lanes) {
  if constexpr (Step != 2) return lanes;
  lanes = (lanes | lanes << 8) & 0x00ff00ffu;
  lanes = (lanes | lanes << 4) & 0x0f0f0f0fu;
  lanes = (lanes | lanes << 2) & 0x33333333u;
  return (lanes | lanes << 1) & 0x55555555u;
}

// Whether the pixels of the next run follow this run's in memory: both rows of tiles are whole rows
// of the image, which one tap copies as they are.
template <class T, int Step>
bool rows_join(const TapGrid& grid, const Images<const T>& x, const TileRun& run,
               const TileRun& next) {
  return Step == 1 && grid.taps == 1 && grid.row_step == 1 && grid.row_shift[0] == 0 &&
         grid.column_shift[0] == 0 && next.image == run.image && next.row < x.height &&
         next.column == 0 && run.column + run.count == x.width;
}

// The windows of one tap, equally many for all; returns the end of the list.
template <class T, int Step>
LaneWindow* tap_windows(const TileBlock& block, const TapGrid& grid, int tap,
                        const Images<const T>& x, LaneWindow* out) {
  const int64_t step = grid.column_step, shift = grid.column_shift[tap];
  const int64_t first = first_at_least(0, step, shift);
  const int64_t last = first_at_least(x.width, step, shift);
  for (int32_t r = 0; r < block.run_count; ++r) {
    const TileRun& run = block.runs[r];
    const int64_t row = static_cast<int64_t>(grid.row_step) * run.row + grid.row_shift[tap];
    const bool inside = run.image >= 0 && row >= 0 && row < x.height;
    const int64_t line = (run.image * x.image_channels * x.height + row) * x.width + shift;
    int64_t count = run.count, end = last;
    for (; r + 1 < block.run_count && rows_join<T, Step>(grid, x, block.runs[r], block.runs[r + 1]);
         ++r) {
      count += block.runs[r + 1].count;
      end = run.column + count;
    }
    for (int64_t done = 0; done < count; done += kLanes<T>) {
      const int64_t column = run.column + done;
      const int64_t rest = smaller(end - column, smaller(kLanes<T>, count - done));
      const Lanes lanes = inside ? lanes_between(first - column, rest, kLanes<T>) : 0;
      *out++ = {lanes == 0 ? 0 : line + step * column, static_cast<int32_t>(run.lane + done),
                spread<Step>(lanes)};
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

template <class T>
METASPARSE_INLINE Vec<T> load_alternate(uint32_t window, const T* p) {
  constexpr int L = kLanes<T>;
  if (window == kWholeWindow<T, 2>) {
    return shuffle<AlternatePattern<L>, T>(load_unaligned(p), load_unaligned(p + L - 1));
  }
  const Lanes low = window & kAllLanes<T>;
  const Lanes high = window >> L & kAllLanes<T>;
  const Vec<T> in[2] = {load_some(low, p), high == 0 ? Vec<T>{} : load_some(high, p + L)};
  Vec<T> out[2];
  deinterleave<T, 2>(in, out);
  return out[0];
}

// Channels from the one that is copied to the one that is asked for: a copy takes far less time
// than memory does.
constexpr int64_t kAhead = 8;

// Step 1 or 2 known at compile time, 0: any. Asks for the same window of a later channel, `ahead`
// values on, and for that of the next block, which lies `beyond` values further in this one.
template <class T, int Step>
void replay(const LaneWindow* begin, const LaneWindow* end, int64_t step, const T* plane,
            int64_t ahead, int64_t beyond, T* row) {
  // A window stores a whole register: what it spills past its lanes the next window overwrites.
  for (const LaneWindow* w = begin; w != end; ++w) {
    const T* p = plane + w->offset;
    __builtin_prefetch(p + ahead);
    __builtin_prefetch(p + beyond);
    Vec<T> value;
    if constexpr (Step == 1) {
      value = w->lanes == kWholeWindow<T, 1> ? load_unaligned(p) : load_some(w->lanes, p);
    } else if constexpr (Step == 2) {
      value = load_alternate<T>(w->lanes, p);
    } else {
      value = load_spread<T>(w->lanes, p, step);
    }
    store_unaligned(row + w->lane, value);
  }
}

template <class T, int Step>
int64_t windows_at(const TileBlock& block, const TapGrid& grid, const Images<const T>& x,
                   LaneWindow* out) {
  LaneWindow* end = out;
  for (int32_t tap = 0; tap < grid.taps; ++tap) {
    end = tap_windows<T, Step>(block, grid, tap, x, end);
  }
  return grid.taps == 0 ? 0 : (end - out) / grid.taps;
}

template <class T>
int64_t windows(const TileBlock& block, const TapGrid& grid, const Images<const T>& x,
                LaneWindow* out) {
  switch (grid.column_step) {
    case 1:
      return windows_at<T, 1>(block, grid, x, out);
    case 2:
      return windows_at<T, 2>(block, grid, x, out);
    default:
      return windows_at<T, 0>(block, grid, x, out);
  }
}

template <class T, int Step>
void gather_at(const TapGrid& grid, const Images<const T>& x, const LaneWindow* windows,
               int64_t per_tap, const Repeats& repeats, int64_t width, T* v) {
  for (int64_t channel = 0; channel < x.channels; ++channel) {
    const T* plane = x.data + channel * x.plane();
    const LaneWindow* w = windows;
    for (int32_t tap = 0; tap < grid.taps; ++tap, w += per_tap, v += width) {
      for (int64_t n = 0; n < repeats.count; ++n) {
        replay<T, Step>(w, w + per_tap, grid.column_step, plane + n * repeats.image,
                        kAhead * x.plane(), width * grid.column_step, v + n * repeats.lanes);
      }
    }
  }
}

template <class T>
void gather(const TapGrid& grid, const Images<const T>& x, const LaneWindow* windows,
            int64_t per_tap, const Repeats& repeats, int64_t width, T* v) {
  switch (grid.column_step) {
    case 1:
      return gather_at<T, 1>(grid, x, windows, per_tap, repeats, width, v);
    case 2:
      return gather_at<T, 2>(grid, x, windows, per_tap, repeats, width, v);
    default:
      return gather_at<T, 0>(grid, x, windows, per_tap, repeats, width, v);
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
    const int64_t offset = (run.image * y.image_channels * y.height + row) * y.width + column;
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
constexpr DirectKernels<T> kTable = {windows<T>, gather<T>, drain<T>};

}  // namespace

template <class T>
const DirectKernels<T>& direct_kernels() {
  return kTable<T>;
}

template const DirectKernels<float>& direct_kernels<float>();
template const DirectKernels<double>& direct_kernels<double>();

}  // namespace metasparse::cpu::METASPARSE_ISA
