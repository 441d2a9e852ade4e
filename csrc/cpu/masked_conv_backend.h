// Ways to compute a masked convolution on the CPU, and the rule that chooses between them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace metasparse::cpu {

struct ConvShape {
  int64_t tasks, samples, in_channels, out_channels;
  int64_t height, width, out_height, out_width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
};

enum class Backend {
  automatic,   // the rule of choose_backend
  precise,     // the rule, restricted to schemes as exact as a direct sum
  library,     // a dense convolution of the premultiplied weight, by torch
  direct,      // skips pruned kernels, any shape
  narrow,      // few input channels, any shape: all kernels, outputs where they lie in memory; the
               // input gradient is direct's
  winograd2,   // 3x3, stride 1: tiles of 2x2 outputs, 16 products for 36
  winograd3,   //                3x3,             25 for 81
  winograd4,   //                4x4,             36 for 144
  winograd5,   //                5x5,             49 for 225
  polyphase2,  // 3x3, stride 2, padding 1: tiles of 2x2 outputs, 25 products for 36
  polyphase3,  //                           3x3,             49 for 81
};

enum class ConvOp { forward, input_grad, weight_grad };

// Whether a backend can compute this shape at all.
bool backend_supports(Backend backend, const ConvShape& shape);

// The backend that measured fastest for a shape and a density (the fraction of active kernels; 1
// for a dense weight gradient), which is counted only where it matters. `requested` automatic or
// precise: by the rule; anything else is returned as it is if it supports the shape, and otherwise
// is an error (std::invalid_argument).
Backend choose_backend(Backend requested, ConvOp op, const ConvShape& shape,
                       const std::function<double()>& density);

// The side of the output tiles of a Winograd or polyphase backend; 0 for the others.
int winograd_tile(Backend backend);
int polyphase_tile(Backend backend);

const char* backend_name(Backend backend);

// The backend of a name, as in METASPARSE_CONV_BACKEND; std::invalid_argument lists the names.
Backend backend_named(const std::string& name);

}  // namespace metasparse::cpu
