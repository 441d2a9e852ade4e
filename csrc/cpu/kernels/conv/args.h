// Arguments of the convolution's kernels: plain types that csrc/cpu/conv and the kernels share.
//
// A tile is the patch of outputs that one application of an algorithm yields (one pixel for direct
// convolution, M x M pixels for Winograd's). The tiles of all images of a task are numbered row by
// row, image by image, and lie in the SIMD lanes: one register holds the same value of kLanes
// neighbouring tiles. A block is a few registers' worth of tiles; everything below is per block.
//
// A row and a column are those of an image or of its tiles. The matrices of kernels have output
// rows, and sources, the rows of V that are summed over.
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

// The active kernels of two neighbouring output rows a and b of a paired CSR matrix, in three
// parts: kernels active in both (entries a, b, a, b, ...), then those of a alone, then those of b
// alone.
struct RowPair {
  int32_t begin, both, first, second;
};

// SpMM: m[row] (+)= sum over the entries e of `row`: weights[e] * v[source[e]], for 2 * pairs rows.
// `source`, the column index of the matrix, names rows of v.
template <class T>
struct SpmmArgs {
  const RowPair* rows;
  const int32_t* source;
  const T* weights;
  const T* v;
  T* m;
  int64_t pairs;
  bool accumulate;
};

// SDDMM: out[e] (+)= <d[row], v[source[e]]> for the entries e in row_begin[row] .. row_begin[row +
// 1].
template <class T>
struct SddmmArgs {
  const int32_t* row_begin;
  const int32_t* source;
  const T* d;
  const T* v;
  T* out;
  int64_t rows;
  bool accumulate;
};

// The same with all kernels: out[row * sources + source] (+)= <d[row], v[source]>.
template <class T>
struct DenseSddmmArgs {
  const T* d;
  const T* v;
  T* out;
  int64_t rows, sources;
  bool accumulate;
};

// m[row] (+)= sum over the sources s of weights[s * stride + row] * v[s], for all rows; rows of v
// and m are one register. Weights of a register more than there are rows are read.
template <class T>
struct DenseSpmmArgs {
  const T* weights;
  int64_t stride;
  const T* v;
  T* m;
  int64_t rows, sources;
  bool accumulate;
};

// Of a strip of `pixels` neighbouring output pixels of an image, whose channels lie `plane` values
// apart; rows of V are `width` apart, whole registers, zeros past the last pixel.
//
// y[channel] = bias[channel] + sum over k of weights[channel * rows + k] * v[k]
template <class T>
struct FewChannelsForwardArgs {
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
struct FewChannelsWeightGradArgs {
  const T* grad;
  int64_t plane, channels, pixels;
  int64_t images, image_size, image_width;
  const T* v;
  int64_t width, rows;
  T* out;
};

// The order of these sums: groups of channels, in them chunks of rows, `apart` values apart.
struct FewChannelsSums {
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

// The entries begin .. end - 1 of a matrix: entry e is the weight at weight_index[e], or weight e
// itself where `weight_index` is null.
struct WeightEntries {
  const int32_t* weight_index;
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
