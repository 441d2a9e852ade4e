#include "masked_conv_backend.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace metasparse::cpu {

namespace {

struct NamedBackend {
  Backend backend;
  const char* name;
};

constexpr NamedBackend kNames[] = {
    {Backend::automatic, "automatic"},   {Backend::precise, "precise"},
    {Backend::library, "library"},       {Backend::direct, "direct"},
    {Backend::narrow, "narrow"},         {Backend::winograd2, "winograd2"},
    {Backend::winograd3, "winograd3"},   {Backend::winograd4, "winograd4"},
    {Backend::winograd5, "winograd5"},   {Backend::polyphase2, "polyphase2"},
    {Backend::polyphase3, "polyphase3"},
};

// ---- the rule ----------------------------------------------------------------------------------
//
// Ratios below are times of torch's dense convolution (oneDNN) over these kernels', per task in a
// loop, one thread of a Zen 4 core with AVX-512, float32: forward / input gradient / weight
// gradient at density 1, .5, .2. A row of the table holds where every listed shape measured at
// least 0.95.
//
//   3x3, stride 1, 64 channels, N=25, map 84, F4   2.5/2.6/3.1   3.1/3.2/4.3   3.8/3.8/5.5
//                                     28, F4       2.3/2.2/2.2   3.0/3.1/2.8   4.2/4.2/3.7
//                                     21, F3       1.9/1.9/1.9   2.6/2.7/2.6   3.6/3.5/3.3
//                                     10, F5       1.6/1.6/1.7   2.0/2.0/2.1   2.5/2.5/2.6
//                                      7, F4       1.5/1.4/1.7   2.1/1.9/1.9   2.9/2.7/2.6
//                                      2, F2       1.0/1.1/1.3   1.4/1.3/1.5   1.6/1.7/1.9
//     128 channels                    16, F4       2.3/2.4/2.5   3.8/3.6/3.4   5.7/5.5/5.0
//     dense weight gradient, 84 to 7               1.4 .. 2.1
//     3 channels in, 84: F4 input gradient 3.2; forward, T=4, N=5, 32 channels out: narrow 1.7 1.8
//     1.8, F4 1.7 2.2 2.2; N=25, 64 out: narrow 1.0, F4 .9; narrow weight gradient 1.2 to 1.5
//     5 channels in, 28: F4 forward 1.4, narrow 1.0; weight gradient: narrow 1.3
//     1 and 2 channels in, 28, T=4: narrow forward 1.8 to 2.4, direct 1.2 to 1.4; narrow weight
//     gradient 1.5 to 2.5, direct .7 to 1.8
//   3x3, stride 2, 64 channels, map 84, M=3        1.8/2.2/1.9   2.4/2.7/2.5   3.2/2.9/3.5
//                                   42, M=3        1.3/1.8/1.1   1.8/2.2/1.4   2.5/4.8/2.0
//                                   32, M=2        1.4/2.3/1.1   2.0/2.1/1.6   3.1/3.4/2.4
//                              T=4, 16, M=2        1.3/1.7/1.4   1.8/2.1/1.8   3.0/3.2/2.8
//                                    8, M=2        1.0/1.4/1.2   1.4/1.8/1.6   2.2/2.9/2.3
//                                    4, M=2        1.0/1.4/1.3   1.4/1.9/1.5   1.9/2.7/2.0
//                         T=4, N=5,  7, M=2        1.5/1.8/1.5   2.5/2.5/1.9
//                                    4, M=2        1.6/1.9/1.5   2.5/2.7/2.1
//     128 channels                  32, M=2        1.2/1.8/1.2   2.0/2.5/1.8   3.4/5.6/2.7
//     3 channels in, 32, narrow, forward / weight gradient    1.1/.96       1.1/.96       1.1/.97
//                        direct                               .9 / .6       1.2/ .8       1.5/ .8
//     4 and 7 channels in: narrow 1.0/.93, direct .85/.7
//     1 channel in, 28: narrow 1.8/1.3, direct 1.1/ .6

enum Family { kDirect, kNarrow, kWinograd, kPolyphase };

constexpr int64_t kAny = std::numeric_limits<int64_t>::max();
constexpr unsigned kForward = 1, kInputGrad = 2, kWeightGrad = 4;

// The first row that a call satisfies decides; none: library.
struct Rule {
  Family family;
  unsigned ops;
  int64_t stride;  // of 3x3 kernels; 0: any kernel and stride
  int64_t min_sources,
      max_sources;    // channels that are summed over: in, or out for the input gradient
  int64_t min_side;   // of the output map
  int64_t min_tiles;  // 2x2 output tiles of a task, which have the SIMD lanes to fill
  double max_density;
};

constexpr Rule kRules[] = {
    {kWinograd, kForward | kInputGrad | kWeightGrad, 1, 8, kAny, 2, 1, 1.0},
    {kWinograd, kForward, 1, 3, 3, 8, 16, 0.75},
    {kNarrow, kForward, 1, 1, 3, 2, 1, 1.0},
    {kWinograd, kForward, 1, 4, 7, 8, 16, 1.0},
    {kNarrow, kWeightGrad, 1, 1, 7, 2, 1, 1.0},
    {kPolyphase, kForward | kInputGrad, 2, 8, kAny, 2, 1, 1.0},
    {kPolyphase, kWeightGrad, 2, 8, kAny, 2, 2, 1.0},
    {kDirect, kForward, 2, 3, 7, 8, 16, 0.6},
    {kNarrow, kForward | kWeightGrad, 2, 1, 7, 2, 1, 1.0},
    {kDirect, kForward | kInputGrad | kWeightGrad, 0, 8, kAny, 2, 16, 0.45},
};

bool satisfies(const ConvShape& s, ConvOp op, const std::function<double()>& density,
               const Rule& rule) {
  const unsigned bit = op == ConvOp::forward      ? kForward
                       : op == ConvOp::input_grad ? kInputGrad
                                                  : kWeightGrad;
  const bool kernel3 = s.kernel_h == 3 && s.kernel_w == 3 && s.stride_h == s.stride_w;
  if (rule.family == kPolyphase && !backend_supports(Backend::polyphase2, s)) return false;
  const int64_t sources = op == ConvOp::input_grad ? s.out_channels : s.in_channels;
  return (rule.ops & bit) != 0 && (rule.stride == 0 || (kernel3 && s.stride_h == rule.stride)) &&
         sources >= rule.min_sources && sources <= rule.max_sources &&
         std::min(s.out_height, s.out_width) >= rule.min_side &&
         s.samples * ((s.out_height + 1) / 2) * ((s.out_width + 1) / 2) >= rule.min_tiles &&
         (rule.max_density >= 1 || density() <= rule.max_density);
}

// Tiles cost their products, whether or not the map fills them; the weights are measured, and
// account for the larger transforms of larger tiles.
Backend winograd_for(const ConvShape& s, ConvOp op) {
  struct Tile {
    Backend backend;
    double forward, weight_grad;
  };
  constexpr Tile kTiles[] = {{Backend::winograd4, 1.0, 1.0},
                             {Backend::winograd3, 0.93, 0.95},
                             {Backend::winograd2, 1.0, 1.0},
                             {Backend::winograd5, 1.35, 1.12}};
  const int64_t height = op == ConvOp::input_grad ? s.height : s.out_height;
  const int64_t width = op == ConvOp::input_grad ? s.width : s.out_width;
  Backend best = Backend::winograd4;
  double least = std::numeric_limits<double>::infinity();
  for (const Tile& tile : kTiles) {
    const int64_t m = winograd_tile(tile.backend);
    const int64_t tiles = ((height + m - 1) / m) * ((width + m - 1) / m);
    const double cost = static_cast<double>(tiles * (m + 2) * (m + 2)) *
                        (op == ConvOp::weight_grad ? tile.weight_grad : tile.forward);
    if (cost < least) {
      least = cost;
      best = tile.backend;
    }
  }
  return best;
}

Backend polyphase_for(const ConvShape& s) {
  const auto products = [&](int64_t m) {
    return ((s.out_height + m - 1) / m) * ((s.out_width + m - 1) / m) * (2 * m + 1) * (2 * m + 1);
  };
  return products(3) < products(2) ? Backend::polyphase3 : Backend::polyphase2;
}

}  // namespace

bool backend_supports(Backend backend, const ConvShape& s) {
  if (backend == Backend::library || backend == Backend::direct || backend == Backend::narrow) {
    return true;
  }
  const bool kernel3 = s.kernel_h == 3 && s.kernel_w == 3;
  if (winograd_tile(backend) != 0) return kernel3 && s.stride_h == 1 && s.stride_w == 1;
  return kernel3 && s.stride_h == 2 && s.stride_w == 2 && s.pad_h == 1 && s.pad_w == 1;
}

int polyphase_tile(Backend backend) {
  return backend == Backend::polyphase2 ? 2 : backend == Backend::polyphase3 ? 3 : 0;
}

int winograd_tile(Backend backend) {
  switch (backend) {
    case Backend::winograd2:
      return 2;
    case Backend::winograd3:
      return 3;
    case Backend::winograd4:
      return 4;
    case Backend::winograd5:
      return 5;
    default:
      return 0;
  }
}

Backend choose_backend(Backend requested, ConvOp op, const ConvShape& shape,
                       const std::function<double()>& density) {
  const bool precise = requested == Backend::precise;
  if (requested != Backend::automatic && !precise) {
    if (!backend_supports(requested, shape)) {
      throw std::invalid_argument(std::string("convolution backend ") + backend_name(requested) +
                                  " does not support this kernel size, stride or padding");
    }
    return requested;
  }
  for (const Rule& rule : kRules) {
    if (!satisfies(shape, op, density, rule)) continue;
    if (rule.family == kDirect) return Backend::direct;
    if (rule.family == kNarrow) return Backend::narrow;
    if (rule.family == kPolyphase) return polyphase_for(shape);
    return precise ? Backend::winograd2 : winograd_for(shape, op);
  }
  return Backend::library;
}

const char* backend_name(Backend backend) {
  for (const NamedBackend& entry : kNames) {
    if (entry.backend == backend) return entry.name;
  }
  return "unknown";
}

Backend backend_named(const std::string& name) {
  std::string known;
  for (const NamedBackend& entry : kNames) {
    if (name == entry.name) return entry.backend;
    known += known.empty() ? entry.name : std::string(", ") + entry.name;
  }
  throw std::invalid_argument("convolution backend must be one of " + known + ", but is " + name);
}

}  // namespace metasparse::cpu
