// Algorithms of the masked convolution on the CPU, and the choice between them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace metasparse::cpu {

inline int64_t divide_up(int64_t a, int64_t b) { return a / b + (a % b != 0); }

struct ConvShape {
  int64_t tasks, samples, in_channels, out_channels;
  int64_t height, width, out_height, out_width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
};

enum class ConvOp { forward, input_grad, weight_grad };

enum class ConvKind {
  library,       // a dense convolution of the premultiplied weight, by torch
  direct,        // im2col and SpMM: any shape
  few_channels,  // all kernels, outputs where they lie in memory: first layers
  winograd,      // 3x3, stride 1: (M + 2)^2 products for M x M outputs, M = 2 .. 5
  polyphase,     // 3x3, stride 2, padding 1: (2 M + 1)^2 products for M x M outputs, M = 2, 3
};

struct ConvAlgorithm {
  ConvKind kind = ConvKind::library;
  int tile = 0;  // the side M of the output tiles; 0 for kinds without

  bool operator==(const ConvAlgorithm&) const = default;
};

// How the algorithm of a call is found.
enum class ConvMode {
  automatic,  // by the heuristics
  precise,    // likewise, of the algorithms that are as exact as a direct sum
  forced,     // always the one that is named, which must serve the call
};

struct ConvRequest {
  ConvMode mode = ConvMode::automatic;
  ConvAlgorithm algorithm;  // where it is forced
};

// The fraction of active kernels; 1 where the unmasked gradient is wanted. Evaluated lazily:
// counting reads the mask.
using Density = std::function<double()>;

// Why an algorithm cannot compute an op of this shape; null where it can.
const char* unsupported(ConvAlgorithm algorithm, ConvOp op, const ConvShape& shape);

// The algorithm of a call. std::invalid_argument if a forced one does not serve it.
ConvAlgorithm choose_algorithm(const ConvRequest& request, ConvOp op, const ConvShape& shape,
                               const Density& density);

// What was considered for a call, in order, and what became of it: the last one is chosen.
struct Candidate {
  ConvAlgorithm algorithm;
  std::string verdict;
};
std::vector<Candidate> explain_choice(const ConvRequest& request, ConvOp op, const ConvShape& shape,
                                      const Density& density);

std::string algorithm_name(ConvAlgorithm algorithm);
std::string request_name(const ConvRequest& request);

// A request by its name, as in METASPARSE_CONV_BACKEND, in static storage; std::invalid_argument
// lists the names.
const ConvRequest& request_named(const std::string& name, const std::string& source);

}  // namespace metasparse::cpu
