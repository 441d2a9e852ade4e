#pragma once
// A log of what the threads of a launch read and write, and of the accesses that nothing orders.
//
// The kernels are compiled with the compiler's instrumentation for ThreadSanitizer, and races.cpp
// is what it calls in place of that tool: two accesses to a place are ordered if their threads met
// at a barrier in between, of the warp, the block or the cluster, and nothing else orders them. Two
// that are not, of which one writes, are a finding, whatever values they happened to see. So is an
// access at an address that its type's alignment does not divide, which a GPU would trap on.
#include <cstddef>
#include <cstdint>

namespace metasparse::emulation {

// A thread of the launch, and how many barriers it has passed.
struct Moment {
  uint32_t block = 0, cluster = 0;  // numbers in the grid
  uint32_t thread = 0;
  uint32_t cluster_barriers = 0, block_barriers = 0, warp_barriers = 0;
};

// Whether a kernel's thread is running; if so, which, and when.
bool current(Moment& moment);

// Whether an address is a thread's own: on its stack.
bool is_own(const void* address);

// Forgets what was logged, all of it or a part.
void forget_accesses();
void forget_accesses(const void* from, size_t bytes);

// Logs accesses that the instrumentation does not see.
void log_write(const void* address, size_t bytes);
void log_read(const void* address, size_t bytes);
void log_atomic(const void* address, size_t bytes);
void log_alignment(const void* address, size_t bytes);

// Whether the kernels are instrumented, and what was found: the first sentences of it, which are
// forgotten then.
bool logs_accesses();
size_t take_findings(char* text, size_t room);

}  // namespace metasparse::emulation
