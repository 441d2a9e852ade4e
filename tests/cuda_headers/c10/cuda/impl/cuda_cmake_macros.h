#pragma once
// The one header that a CUDA build of PyTorch generates and a CPU build lacks; with it, the
// bindings can be checked against the real headers beside either.
#define C10_CUDA_BUILD_SHARED_LIBS
