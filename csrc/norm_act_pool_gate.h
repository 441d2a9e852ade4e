#pragma once
#include <cstdint>

namespace metasparse {

// The gate of norm_act_pool is one code per output: the place 0..3 of the maximum in its 2x2 window
// (row by row; 0 without pooling), or kClosed where the activation makes it 0.
constexpr uint8_t kClosed = 4;

}  // namespace metasparse
