// Plain types that the drivers in csrc/cpu and the kernels in csrc/cpu/kernels share.
//
// The engine of the masked convolution works on tiles: a tile is the patch of outputs that one
// application of a scheme yields (one pixel for the direct scheme, M x M pixels for Winograd). The
// tiles of all images of a task are numbered row by row, image by image, and lie in the SIMD lanes:
// one register holds the same value of kLanes neighbouring tiles. A block is a few registers' worth
// of tiles; everything below is per block.
#pragma once

#include <cstdint>

namespace metasparse::cpu {

// Neighbouring tiles of one tile row of one image. `lane` is the first one's place in the block. A
// run with image < 0 is blank: lanes past the last tile, read as zeros and never written out.
struct TileRun {
  int64_t image;
  int32_t lane, count;
  int32_t row, column;
};

// Runs in lane order that cover all lanes of `vectors` registers.
struct TileBlock {
  const TileRun* runs;
  int32_t run_count;
  int32_t vectors;
};

// The images of one task: (N, C, H, W), or some neighbouring channels of them.
template <class T>
struct Images {
  T* data;
  int64_t channels, height, width;
  int64_t image_channels = channels;  // of a whole image

  int64_t plane() const { return height * width; }

  Images some_channels(int64_t first, int64_t count) const {
    return {data + first * plane(), count, height, width, image_channels};
  }
};

// The list of active kernels of two neighbouring output rows a and b, in three parts: kernels
// active in both (entries a, b, a, b, ...), then those of a alone, then those of b alone.
struct PairRun {
  int32_t begin, both, first, second;
};

// m[row] (+)= sum over the entries e of `row`: weights[e] * v[source_rows[e]], for 2 * pairs rows.
template <class T>
struct ProductStep {
  const PairRun* runs;
  const int32_t* source_rows;
  const T* weights;
  const T* v;
  T* m;
  int64_t pairs;
  bool accumulate;
};

// out[e] (+)= <d[row], v[source_rows[e]]> for the entries e in row_begin[row] .. row_begin[row +
// 1].
template <class T>
struct SampledStep {
  const int32_t* row_begin;
  const int32_t* source_rows;
  const T* d;
  const T* v;
  T* out;
  int64_t rows;
  bool accumulate;
};

// out[row * columns + column] (+)= <d[row], v[column]>, all rows and columns.
template <class T>
struct DenseStep {
  const T* d;
  const T* v;
  T* out;
  int64_t rows, columns;
  bool accumulate;
};

// m[row] (+)= sum over the columns c of weights[c * stride + row] * v[c], for all rows; rows of v
// and m are one register. Weights of a register more than there are rows are read.
template <class T>
struct OuterStep {
  const T* weights;
  int64_t stride;
  const T* v;
  T* m;
  int64_t rows, columns;
  bool accumulate;
};

// Of a strip of `pixels` neighbouring output pixels of an image, whose channels lie `plane` values
// apart; rows of V are `width` apart, whole registers, zeros past the last pixel.
//
// y[channel] = bias[channel] + sum over k of weights[channel * rows + k] * v[k]
template <class T>
struct NarrowStep {
  const T* weights;
  int64_t rows;
  const T* v;
  int64_t width;
  const T* bias;  // null: none
  T* y;
  int64_t plane, channels, pixels;
  bool stream;  // outputs are larger than the caches: write past them
};

// out[position of (channel, k)] += <grad[channel], v[k]>, over `images` strips that lie image_size
// apart in the gradient and image_width in a row of V.
template <class T>
struct NarrowSampledStep {
  const T* grad;
  int64_t plane, channels, pixels;
  int64_t images, image_size, image_width;
  const T* v;
  int64_t width, rows;
  T* out;
};

// The order of these sums: groups of channels, in them chunks of rows, `apart` values apart.
struct NarrowSums {
  int64_t group, chunk, apart;

  int64_t chunks(int64_t rows) const { return (rows + chunk - 1) / chunk; }
  int64_t count(int64_t channels, int64_t rows) const {
    return (channels + group - 1) / group * chunks(rows) * apart;
  }
  int64_t position(int64_t channel, int64_t row, int64_t rows) const {
    return (channel / group * chunks(rows) + row / chunk) * apart + channel % group * chunk +
           row % chunk;
  }
};

// The entries begin .. end - 1 of stored weights, entry e standing for what is at places[e], or at
// e itself where `places` is null.
struct WeightEntries {
  const int32_t* places;
  int64_t begin, end;
};

// Where the taps of a direct convolution read: output pixel (r, c) takes, for tap k, the input
// pixel (row_step * r + row_shift[k], column_step * c + column_shift[k]), or zero outside the
// image.
struct TapGrid {
  const int32_t* row_shift;
  const int32_t* column_shift;
  int32_t taps;
  int32_t row_step, column_step;
};

// Where pixel (r, c) of a direct convolution goes: (row_step * r + row_offset, likewise the
// column).
struct PixelGrid {
  int32_t row_step, row_offset;
  int32_t column_step, column_offset;
};

// At most one register of lanes of a run: where they lie in memory and which of them exist, lane l
// being bit l, or bit 2 l where neighbouring lanes lie two values apart.
struct LaneWindow {
  int64_t offset;
  int32_t lane;
  uint32_t lanes;
};

// The same windows of `count` images that lie `image` values apart, `lanes` apart in a row of V.
struct Repeats {
  int64_t count, image, lanes;
};

// Lanes whose values go to neighbouring (or evenly spread) places in memory.
struct LaneRange {
  int64_t offset;
  int32_t lane, count;
};

}  // namespace metasparse::cpu
