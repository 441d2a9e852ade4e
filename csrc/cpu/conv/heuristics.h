// Every threshold of the masked convolution, each with the measurement behind it.
// docs/performance.md has the ratios to the dense library that the table of algorithms rests on.
#pragma once

#include <cstdint>
#include <limits>

#include "algorithm.h"

namespace metasparse::cpu::heuristics {

inline constexpr int64_t kAny = std::numeric_limits<int64_t>::max();

// ---- which algorithm ---------------------------------------------------------------------------

inline constexpr unsigned kForward = 1u << static_cast<int>(ConvOp::forward);
inline constexpr unsigned kInputGrad = 1u << static_cast<int>(ConvOp::input_grad);
inline constexpr unsigned kWeightGrad = 1u << static_cast<int>(ConvOp::weight_grad);

// A rule applies if all of its conditions hold. The first that applies decides; if none does, the
// library.
struct Rule {
  ConvKind kind;
  unsigned ops;
  int64_t stride;                      // of 3x3 kernels; or a window below
  int64_t min_channels, max_channels;  // summed over: in, or out for the input gradient
  int64_t min_side, max_side;          // of the output map: its shorter side
  int64_t min_tiles;                   // 2x2 output tiles of a task, which have SIMD lanes to fill
  double max_density;
};

inline constexpr int64_t kAnyWindow = 0;   // any kernel and stride
inline constexpr int64_t kPointwise = -1;  // kernels of one pixel, any stride
// Of larger kernels:
inline constexpr int64_t kOneTap = -2;      // on images of one pixel, which meet one tap
inline constexpr int64_t kSmallImage = -3;  // larger than their image in both directions
inline constexpr int64_t kWholeImage = -4;  // all of whose taps meet the image, once: one output

inline constexpr unsigned kInputs = kForward | kInputGrad;  // what SpMM computes
inline constexpr unsigned kAll = kInputs | kWeightGrad;

// From so many channels on the transformed weights of a task are larger than the caches, and only
// many tiles pay for them; from twice as many on those of a direct convolution are, too.
inline constexpr int64_t kMany = 128;

// One thread of a Zen 4 core with AVX-512, float32; from kMany channels on, for maps of one pixel
// and for first layers, a Xeon of 2.5 GHz. A row holds where every shape listed in
// docs/performance.md was at least 0.95 times as fast as torch's dense convolution; what is missed
// from kMany channels on is said there. `python -m benchmarks.tune` measures what the rows lose on
// a machine.
inline constexpr Rule kRules[] = {
    {ConvKind::library, kInputGrad, kWholeImage, 8, kAny, 1, 1, 1, 1.0},
    {ConvKind::direct, kAll, kAnyWindow, 8, 2 * kMany - 1, 1, 1, 1, 1.0},
    {ConvKind::direct, kInputs, kOneTap, 2 * kMany, kAny, 1, 1, 1, 1.0},
    {ConvKind::direct, kForward, kSmallImage, 2 * kMany, kAny, 1, 1, 1, 0.97},
    {ConvKind::direct, kInputGrad, kSmallImage, 2 * kMany, kAny, 1, 1, 1, 0.7},
    {ConvKind::direct, kInputs, kAnyWindow, 2 * kMany, kAny, 1, 1, 1, 0.6},
    {ConvKind::direct, kWeightGrad, kAnyWindow, 2 * kMany, kAny, 1, 1, 1, 1.0},
    {ConvKind::direct, kWeightGrad, kAnyWindow, 5, 8, 2, kAny, 16, 0.3},
    {ConvKind::winograd, kAll, 1, 8, kMany - 1, 2, kAny, 1, 1.0},
    {ConvKind::winograd, kInputs, 1, kMany, kAny, 2, kAny, 1, 0.3},
    {ConvKind::winograd, kInputs, 1, kMany, 2 * kMany - 1, 2, kAny, 15, 0.8},
    {ConvKind::winograd, kInputs, 1, kMany, 2 * kMany - 1, 2, kAny, 40, 1.0},
    {ConvKind::winograd, kInputs, 1, 2 * kMany, kAny, 2, kAny, 40, 0.8},
    {ConvKind::winograd, kInputs, 1, 2 * kMany, 4 * kMany - 1, 2, kAny, 110, 1.0},
    {ConvKind::winograd, kInputs, 1, 4 * kMany, kAny, 2, kAny, 200, 1.0},
    {ConvKind::direct, kInputs, 1, kMany, kAny, 2, kAny, 1, 0.8},
    {ConvKind::winograd, kWeightGrad, 1, kMany, 4 * kMany - 1, 2, kAny, 15, 1.0},
    {ConvKind::winograd, kWeightGrad, 1, 4 * kMany, kAny, 2, kAny, 40, 1.0},
    {ConvKind::winograd, kWeightGrad, 1, 4 * kMany, kAny, 2, kAny, 15, 0.3},
    {ConvKind::direct, kWeightGrad, 1, kMany, kAny, 2, kAny, 1, 1.0},
    {ConvKind::library, kInputs, 1, kMany, kAny, 2, kAny, 1, 1.0},
    {ConvKind::few_channels, kForward, 1, 1, 4, 2, kAny, 1, 1.0},
    {ConvKind::winograd, kForward, 1, 5, 7, 8, kAny, 16, 1.0},
    {ConvKind::few_channels, kWeightGrad, 1, 1, 7, 2, kAny, 1, 1.0},
    {ConvKind::polyphase, kInputs, 2, 8, kMany - 1, 2, kAny, 1, 1.0},
    {ConvKind::polyphase, kInputs, 2, kMany, kAny, 2, kAny, 1, 0.6},
    {ConvKind::polyphase, kInputs, 2, kMany, kAny, 8, kAny, 200, 1.0},
    {ConvKind::polyphase, kWeightGrad, 2, 9, 4 * kMany - 1, 2, kAny, 2, 1.0},
    {ConvKind::polyphase, kWeightGrad, 2, 4 * kMany, kAny, 2, kAny, 25, 1.0},
    {ConvKind::direct, kWeightGrad, 2, 4 * kMany, kAny, 2, kAny, 1, 1.0},
    {ConvKind::direct, kForward, 2, 4, 7, 8, kAny, 16, 0.3},
    {ConvKind::few_channels, kForward, 2, 1, 7, 2, kAny, 1, 1.0},
    {ConvKind::few_channels, kWeightGrad, 2, 1, 8, 2, kAny, 1, 1.0},
    {ConvKind::direct, kAll, kPointwise, 32, kAny, 2, kAny, 16, 0.6},
    {ConvKind::direct, kAll, kAnyWindow, 8, kAny, 2, kAny, 16, 0.45},
};

// The cost of one multiply-add of a tile relative to F(4)'s, transforms included: measured. On a
// tie the first row wins. The map is that of the outputs of the op: of the input, for its gradient.
struct TileCost {
  int tile;
  double spmm, sddmm;
};
inline constexpr TileCost kWinogradCosts[] = {
    {4, 1.0, 1.0}, {3, 0.93, 0.95}, {2, 1.0, 1.0}, {5, 1.35, 1.12}};
inline constexpr TileCost kPolyphaseCosts[] = {{2, 1.0, 1.0}, {3, 1.0, 1.0}};

// A tile of M x M outputs has more weights the larger it is; each is transformed, and read in each
// block, which costs what multiplying this many registers of tiles with it does. 64 channels, four
// tasks of 5 images, half the kernels (Xeon, AVX-512): F(2) instead of F(5) on a map of 5 takes 244
// instead of 577 microseconds, instead of F(4) on one of 4 196 instead of 421; ratios of all tiles
// on maps of 4 to 14 agree with 3 to 5.
inline constexpr double kWeightRegisters = 4;

// Most weights of many channels lie outside of the caches, and cost more the more there are:
// registers by the geometric mean of input and output channels, from this density on. 512 channels,
// four tasks of 15 images of 3x3, half the kernels: F(2) instead of F(3) for the weight gradient 34
// instead of 62 ms; of 256 channels 7.3 instead of 9.2.
inline constexpr double kManyWeightsDensity = 0.4;
inline constexpr double kSpmmRegistersPerChannel = 1.0 / 73, kSddmmRegistersPerChannel = 1.0 / 48;

// SpMM cuts the sources into so many equal ranges that the longest row, spread evenly, has at most
// this many active kernels in each, and adds the partial sums up: this keeps the error in float32
// below 1e-5 of the largest output. Unsplit, 1 of 100 random calls of 44 channels with F(5) reached
// 1.3e-5; clustered in one range, 44 kernels of 88 reached 8.6e-6.
inline constexpr int64_t max_accumulation(int winograd_tile) {
  return winograd_tile == 4 ? 32 : winograd_tile == 5 ? 22 : kAny;
}

// ---- which instruction set ---------------------------------------------------------------------

// With this many AVX-512 registers of tiles or fewer, AVX2 is used: registers half as long leave
// fewer lanes empty and transpose faster: 1.03 to 1.4 times on Zen 4, 64 channels, 5 to 32 tiles.
inline constexpr int64_t kFewRegisters = 2;

// ---- all kernels, or the active ones -----------------------------------------------------------

// SpMM: from this fraction of active kernels on, all are computed, channels in the lanes, where the
// tiles of a task fill one register at most; never where they need more. AVX2, 64 channels.
inline constexpr double kNever = 2;  // no density reaches it
// Of kernels that are not transformed, `weights` being 1, only where none is pruned: the mask of
// each is then looked up by itself, which takes 4 times as long as the rest (maps of 2 at stride 2,
// Xeon).
inline double dense_spmm_fraction(int64_t tiles, int64_t lanes, int weights) {
  if (tiles > lanes) return kNever;
  if (weights == 1) return 1;
  return 0.2 + 0.4 * static_cast<double>(tiles) / static_cast<double>(lanes);
}

// Of weights larger than this, which leave the second-level cache, only the active ones are read,
// in the order in which they lie: 512 x 512 kernels on one pixel of 5 images of 4 tasks, all
// active: 6.8 ms instead of 12.7 for the forward pass; half of them active: 4.9 instead of 14.6 for
// the input gradient (Xeon).
inline constexpr int64_t kDenseSpmmBytes = int64_t{1} << 20;

// SDDMM over all kernels costs less per kernel and needs no CSR, which a task of few tiles (in
// registers) does not pay back. AVX2, 64 channels: equal at .1, .3, .5 and .57 with 1, 3, 13
// and 50 registers; 128 channels: at .6. Of so many kernels that their sums leave the caches, only
// the active ones pay for longer, with short registers above all: 512 channels, four tasks of 15
// images of 3x3 (Xeon), half the kernels, all against the active ones: 30 and 30 ms with AVX-512,
// 74 and 33 with AVX2, where all of them take 80 and 57.
inline constexpr int64_t kManyKernels = int64_t{1} << 16;
inline double dense_sddmm_fraction(int64_t registers, int64_t lanes, int64_t kernels) {
  if (kernels >= kManyKernels) return lanes >= 16 ? 0.6 : kernels < 4 * kManyKernels ? 0.9 : kNever;
  const auto r = static_cast<double>(registers);
  return 0.6 * r / (r + 2.5);
}

// ---- blocks ------------------------------------------------------------------------------------

// V and M of a block stay in the second-level cache, the rows of V that one chunk reads in the
// first.
inline constexpr int64_t kBlockBytes = int64_t{3} << 20;
inline constexpr int64_t kRowsBytes = int64_t{32} << 10;

// Output channels that go through M at once.
inline constexpr int64_t kChannelChunk = 64;

// Registers of tiles per block. SpMM sums two rows of a block at once: 2 x 6 of AVX2's 16
// registers; AVX-512's hold twice as many tiles, and 2 x 4 of its 32 were fastest. The SDDMM holds
// one row.
inline constexpr int spmm_vectors(int register_bytes) { return register_bytes == 64 ? 4 : 6; }
inline constexpr int kSddmmVectors = 6;

// ---- threads -----------------------------------------------------------------------------------

// Threads divide the tiles of all tasks into parts, and the output channels into shares. A part of
// a task needs its weights, or adds partial sums, across cores; a share repeats the input
// transform. Parts are therefore whole tasks, or have this many cache lines of tiles; below, shares
// are 1.05 to 1.3 times faster, from twice as many on up to 1.2 times slower (Zen 4, two threads,
// 64 channels).
inline constexpr int64_t kPartLines = 3;
inline constexpr int64_t kShareChannels = 8;

// ---- memory ------------------------------------------------------------------------------------

// Matrices of active kernels that are kept from call to call, for each type of matrix. Those of
// half a ResNet-18's kernels are more than 64 MB on images of 84x84; with 16 MB kept, building them
// anew took a sixth of a step on images of 32x32 (Xeon).
inline constexpr std::size_t kKeptBytes = std::size_t{128} << 20;

// A strip of pixels in the algorithm for few channels: rows of V of three channels fit the
// first-level cache.
inline constexpr int64_t kPixelStripBytes = 1024;

}  // namespace metasparse::cpu::heuristics
