// Which results are written past the caches.
#pragma once

#include <cstddef>

namespace metasparse::cpu {

// From this size of a result on it leaves the caches before anyone reads it, and so has no business
// there: half of what a large last-level cache holds.
inline constexpr std::size_t kStreamedBytes = std::size_t{16} << 20;

}  // namespace metasparse::cpu
