// Memory for small objects that outlive the call that makes them.
#pragma once

#include <memory_resource>

namespace metasparse::cpu {

// A pool on pages of its own, from any thread. What is kept from call to call must not come from
// malloc: carved out of a freed activation, a few kilobytes hold the whole of it in the heap, and
// resident memory grows by about one activation per object.
std::pmr::memory_resource& list_memory();

}  // namespace metasparse::cpu
