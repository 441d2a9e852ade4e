#include "algorithm.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>

#include "heuristics.h"
#include "plan.h"

namespace metasparse::cpu {

namespace {

using heuristics::Rule;

struct Named {
  const char* name;
  ConvRequest request;
};

constexpr ConvRequest forced(ConvKind kind, int tile = 0) {
  return {ConvMode::forced, {kind, tile}};
}

constexpr Named kNames[] = {
    {"automatic", {ConvMode::automatic, {}}},
    {"precise", {ConvMode::precise, {}}},
    {"library", forced(ConvKind::library)},
    {"direct", forced(ConvKind::direct)},
    {"few_channels", forced(ConvKind::few_channels)},
    {"winograd2", forced(ConvKind::winograd, 2)},
    {"winograd3", forced(ConvKind::winograd, 3)},
    {"winograd4", forced(ConvKind::winograd, 4)},
    {"winograd5", forced(ConvKind::winograd, 5)},
    {"polyphase2", forced(ConvKind::polyphase, 2)},
    {"polyphase3", forced(ConvKind::polyphase, 3)},
};

bool kernel_is_3x3(const ConvShape& s) { return s.kernel_h == 3 && s.kernel_w == 3; }

bool strides_are(const ConvShape& s, int64_t stride) {
  return s.stride_h == stride && s.stride_w == stride;
}

// What a weight costs, in registers of tiles.
double weight_registers(ConvOp op, const ConvShape& s, const Density& density) {
  const double channels = std::sqrt(static_cast<double>(s.in_channels * s.out_channels));
  const double many = channels * (op == ConvOp::weight_grad ? heuristics::kSddmmRegistersPerChannel
                                                            : heuristics::kSpmmRegistersPerChannel);
  const bool costs_more =
      many > heuristics::kWeightRegisters && density() >= heuristics::kManyWeightsDensity;
  return costs_more ? many : heuristics::kWeightRegisters;
}

// The tile that costs least for a task: its registers of tiles, empty lanes and overhanging tiles
// included, and those that its weights cost, times its points. `points` is of a tile's side.
template <size_t N, class Points>
int cheapest_tile(const heuristics::TileCost (&costs)[N], const Points& points, ConvOp op,
                  double weights, int64_t images, int64_t height, int64_t width) {
  const int64_t lanes = conv_kernels_of<float>(active_isa()).lanes;
  int best = 0;
  double least = std::numeric_limits<double>::infinity();
  for (const auto& [tile, spmm, sddmm] : costs) {
    const int64_t tiles = images * divide_up(height, tile) * divide_up(width, tile);
    const double products = op == ConvOp::weight_grad ? sddmm : spmm;
    const double cost = static_cast<double>(points(tile)) *
                        (static_cast<double>(divide_up(tiles, lanes)) * products + weights);
    if (cost < least) {
      least = cost;
      best = tile;
    }
  }
  return best;
}

int winograd_tile(ConvOp op, const ConvShape& s, const Density& density) {
  const bool input_grad = op == ConvOp::input_grad;
  const auto points = [](int m) { return (m + 2) * (m + 2); };
  return cheapest_tile(heuristics::kWinogradCosts, points, op, weight_registers(op, s, density),
                       s.samples, input_grad ? s.height : s.out_height,
                       input_grad ? s.width : s.out_width);
}

int polyphase_tile(ConvOp op, const ConvShape& s, const Density& density) {
  const auto points = [](int m) { return (2 * m + 1) * (2 * m + 1); };
  return cheapest_tile(heuristics::kPolyphaseCosts, points, op, weight_registers(op, s, density),
                       s.samples, s.out_height, s.out_width);
}

ConvAlgorithm with_best_tile(ConvKind kind, ConvOp op, const ConvShape& shape,
                             const Density& density, bool precise) {
  switch (kind) {
    case ConvKind::winograd:
      return {kind, precise ? 2 : winograd_tile(op, shape, density)};
    case ConvKind::polyphase:
      return {kind, polyphase_tile(op, shape, density)};
    default:
      return {kind};
  }
}

const char* op_name(ConvOp op) {
  switch (op) {
    case ConvOp::forward:
      return "forward pass";
    case ConvOp::input_grad:
      return "input gradient";
    default:
      return "weight gradient";
  }
}

// Which condition of a rule a call misses.
enum class Miss {
  none,
  support,
  op,
  window,
  few_channels,
  many_channels,
  small_map,
  large_map,
  tiles,
  density
};

bool is_for_window(const Rule& rule, const ConvShape& s) {
  const bool pointwise = s.kernel_h == 1 && s.kernel_w == 1;
  switch (rule.stride) {
    case heuristics::kAnyWindow:
      return true;
    case heuristics::kPointwise:
      return pointwise;
    case heuristics::kOneTap:
      return !pointwise && s.height == 1 && s.width == 1;
    case heuristics::kSmallImage:
      return s.height < s.kernel_h && s.width < s.kernel_w;
    case heuristics::kWholeImage:
      return !pointwise && s.height >= s.kernel_h && s.width >= s.kernel_w && s.out_height == 1 &&
             s.out_width == 1;
    default:
      return kernel_is_3x3(s) && strides_are(s, rule.stride);
  }
}

// Of which kernels a rule is.
std::string window_words(const Rule& rule) {
  switch (rule.stride) {
    case heuristics::kPointwise:
      return "kernels of one pixel";
    case heuristics::kOneTap:
      return "larger kernels on images of one pixel";
    case heuristics::kSmallImage:
      return "kernels that are larger than their image";
    case heuristics::kWholeImage:
      return "kernels that see the whole image at once";
    default:
      return "3x3 kernels at stride " + std::to_string(rule.stride);
  }
}

Miss miss(const Rule& rule, ConvOp op, const ConvShape& s, const Density& density) {
  if (unsupported({rule.kind, 2}, op, s) != nullptr) return Miss::support;
  if ((rule.ops >> static_cast<int>(op) & 1) == 0) return Miss::op;
  if (!is_for_window(rule, s)) return Miss::window;
  const int64_t sources = op == ConvOp::input_grad ? s.out_channels : s.in_channels;
  if (sources < rule.min_channels) return Miss::few_channels;
  if (sources > rule.max_channels) return Miss::many_channels;
  const int64_t side = std::min(s.out_height, s.out_width);
  if (side < rule.min_side) return Miss::small_map;
  if (side > rule.max_side) return Miss::large_map;
  const int64_t tiles = s.samples * divide_up(s.out_height, 2) * divide_up(s.out_width, 2);
  if (tiles < rule.min_tiles) return Miss::tiles;
  return rule.max_density >= 1 || density() <= rule.max_density ? Miss::none : Miss::density;
}

template <class... Parts>
std::string words(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// Why the tiles of an algorithm have their size.
std::string tile_words(ConvAlgorithm algorithm, ConvOp op, const ConvShape& s, bool precise) {
  if (algorithm.tile == 0) return "";
  const std::string tiles = words("; tiles of ", algorithm.tile, "x", algorithm.tile);
  if (precise && algorithm.kind == ConvKind::winograd) return tiles + ", the most precise ones";
  const bool input_grad = op == ConvOp::input_grad && algorithm.kind == ConvKind::winograd;
  return words(tiles, ", which cost least for ", s.samples, " maps of ",
               input_grad ? s.height : s.out_height, "x", input_grad ? s.width : s.out_width);
}

std::string verdict(Miss miss, const Rule& rule, ConvAlgorithm algorithm, ConvOp op,
                    const ConvShape& s, const Density& density, bool precise) {
  const char* channels = op == ConvOp::input_grad ? " output channels" : " input channels";
  switch (miss) {
    case Miss::none:
      return "the first rule that applies, as measured on the processors it was made on" +
             tile_words(algorithm, op, s, precise);
    case Miss::support:
      return unsupported({rule.kind, 2}, op, s);
    case Miss::op:
      return words("its rule is not for the ", op_name(op));
    case Miss::window:
      return "its rule is for " + window_words(rule);
    case Miss::few_channels:
      return words("needs ", rule.min_channels, channels, " or more");
    case Miss::many_channels:
      return words("for ", rule.max_channels, channels, " or fewer");
    case Miss::small_map:
      return words("needs output maps of ", rule.min_side, " or more");
    case Miss::large_map:
      return words("for output maps of ", rule.max_side, " or fewer");
    case Miss::tiles:
      return words("needs ", rule.min_tiles, " tiles of 2x2 outputs or more");
    default:
      return words("density ", density(), " is above ", rule.max_density);
  }
}

}  // namespace

const char* unsupported(ConvAlgorithm algorithm, ConvOp op, const ConvShape& s) {
  switch (algorithm.kind) {
    case ConvKind::few_channels:
      if (op == ConvOp::input_grad) return "it has no input gradient";
      return nullptr;
    case ConvKind::winograd:
      if (kernel_is_3x3(s) && strides_are(s, 1)) return nullptr;
      return "it takes 3x3 kernels at stride 1";
    case ConvKind::polyphase:
      if (kernel_is_3x3(s) && strides_are(s, 2) && s.pad_h == 1 && s.pad_w == 1) {
        return nullptr;
      }
      return "it takes 3x3 kernels at stride 2 and padding 1";
    default:
      return nullptr;
  }
}

ConvAlgorithm choose_algorithm(const ConvRequest& request, ConvOp op, const ConvShape& shape,
                               const Density& density) {
  if (request.mode == ConvMode::forced) {
    const char* const reason = unsupported(request.algorithm, op, shape);
    if (reason == nullptr) return request.algorithm;
    throw std::invalid_argument(words("convolution backend ", request_name(request),
                                      " does not support this ", op_name(op), ": ", reason));
  }
  for (const Rule& rule : heuristics::kRules) {
    if (miss(rule, op, shape, density) != Miss::none) continue;
    return with_best_tile(rule.kind, op, shape, density, request.mode == ConvMode::precise);
  }
  return {ConvKind::library};
}

std::vector<Candidate> explain_choice(const ConvRequest& request, ConvOp op, const ConvShape& shape,
                                      const Density& density) {
  std::vector<Candidate> considered;
  if (request.mode == ConvMode::forced) {
    const char* const reason = unsupported(request.algorithm, op, shape);
    return {{request.algorithm, reason == nullptr ? "forced" : words("forced, but ", reason)}};
  }
  const bool precise = request.mode == ConvMode::precise;
  for (const Rule& rule : heuristics::kRules) {
    const ConvAlgorithm algorithm = with_best_tile(rule.kind, op, shape, density, precise);
    const Miss missed = miss(rule, op, shape, density);
    considered.push_back(
        {algorithm, verdict(missed, rule, algorithm, op, shape, density, precise)});
    if (missed == Miss::none) return considered;
  }
  considered.push_back({{ConvKind::library}, "no rule applies"});
  return considered;
}

std::string algorithm_name(ConvAlgorithm algorithm) {
  return request_name({ConvMode::forced, algorithm});
}

std::string request_name(const ConvRequest& request) {
  for (const Named& entry : kNames) {
    const bool same =
        entry.request.mode == request.mode &&
        (request.mode != ConvMode::forced || entry.request.algorithm == request.algorithm);
    if (same) return entry.name;
  }
  throw std::logic_error("a convolution algorithm without a name");
}

const ConvRequest& request_named(const std::string& name, const std::string& source) {
  std::string known;
  for (const Named& entry : kNames) {
    if (name == entry.name) return entry.request;
    known += known.empty() ? entry.name : std::string(", ") + entry.name;
  }
  throw std::invalid_argument(source + " to be one of " + known + ", got '" + name + "'");
}

}  // namespace metasparse::cpu
