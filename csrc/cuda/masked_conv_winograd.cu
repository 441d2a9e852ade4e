// The convolution by Winograd's filtering: forward pass and input gradient at stride 1.
#include "conv_problem.cuh"
#include "conv_winograd.cuh"

namespace metasparse::cuda {
namespace {

// Destination channels of a thread, and blocks of a multiprocessor. float64 is there for checks.
template <class F>
using Tile = WinogradTile<sizeof(F) == 4 ? 8 : 4, sizeof(F) == 4 ? 3 : 1>;

}  // namespace

template <class Scheme, class F>
bool takes(ConvOp op, const ConvShape& s) {
  return s.stride == 1 && s.within_reach() &&
         (s.samples == 0 || fits_shared_memory<F, Tile<F>>(problem_of(op, s)));
}

template <class Scheme, class F>
int64_t masked_conv_workspace(ConvOp op, const ConvShape& s, int terms) {
  return terms * term_bytes<F, WinogradTaps>(op, s);
}

template <class Scheme, class F>
cudaError_t masked_conv(ConvOp op, const ConvShape& s, const ConvSum<F>& sum, PerTask<F> bias,
                        F* destination, void* workspace, cudaStream_t stream) {
  return run_tile<F, Tile<F>>(op, s, sum, bias, destination, workspace, stream);
}

#define METASPARSE_INSTANTIATE(F)                                                            \
  template bool takes<Winograd, F>(ConvOp, const ConvShape&);                                \
  template int64_t masked_conv_workspace<Winograd, F>(ConvOp, const ConvShape&, int);        \
  template cudaError_t masked_conv<Winograd, F>(ConvOp, const ConvShape&, const ConvSum<F>&, \
                                                PerTask<F>, F*, void*, cudaStream_t);
METASPARSE_INSTANTIATE(float)
METASPARSE_INSTANTIATE(double)
#undef METASPARSE_INSTANTIATE

}  // namespace metasparse::cuda
