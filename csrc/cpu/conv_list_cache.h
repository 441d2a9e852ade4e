// Lists of active kernels, kept from call to call.
//
// A mask comes back: in the next call, in the backward pass, for the next task, in the next step.
// Listing its kernels takes as long as transforming them. They are found by the bytes of the mask
// itself, so a mask that was written to, however it was, is never taken for what it had been.
#pragma once

#include <memory>

#include "conv_lists.h"

namespace metasparse::cpu {

// The lists of these kernels under this plan, from any thread. Each kind of lists that are
// kept takes 16 MiB at most; those unused for longest go first.
template <class Lists>
std::shared_ptr<const Lists> lists_of(const ActiveKernels& kernels, const ListPlan& plan);

}  // namespace metasparse::cpu
