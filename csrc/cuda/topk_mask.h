#pragma once
// Ones at the k[s] largest of each row s of scores (S, n), ties to the lowest index.
#include <cuda_runtime.h>

#include <cstdint>

namespace metasparse::cuda {

// Rows of scores lie row_stride entries apart, those of the mask n. A row that holds NaN, or whose
// k is not between 0 and n, becomes NaN.
template <class F>
cudaError_t topk_mask(const F* scores, int64_t row_stride, const int64_t* k, int64_t rows,
                      int64_t n, F* mask, cudaStream_t stream);

}  // namespace metasparse::cuda
