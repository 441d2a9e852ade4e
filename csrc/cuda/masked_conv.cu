// The direct convolution: forward pass, and input gradient, which at stride 2 has a tile of its
// own.
#include "conv_problem.cuh"

namespace metasparse::cuda {
namespace {

// Units one below the other of a thread. float64 is there for checks; its registers are twice as
// wide.
template <class F>
struct Tiles;

template <>
struct Tiles<float> {
  using Tall = PixelTile<1, 8>;
  using Flat = PixelTile<1, 4>;  // for images of up to four rows
  using Strided = PixelTile<2, 4>;
  using Quads = QuadTile<2>;
};

template <>
struct Tiles<double> {
  using Tall = PixelTile<1, 2>;
  using Flat = PixelTile<1, 2>;
  using Strided = PixelTile<2, 2>;
  using Quads = QuadTile<1>;
};

// Calls f with the tile that serves a problem.
template <class F, class Function>
auto with_tile(const Problem& problem, const Function& f) {
  using T = Tiles<F>;
  if (problem.stride == 2 && problem.input_grad) return f(typename T::Quads{});
  if (problem.stride == 2) return f(typename T::Strided{});
  if (problem.to.height <= T::Flat::kUnits) return f(typename T::Flat{});
  return f(typename T::Tall{});
}

}  // namespace

template <class F>
size_t masked_conv_shared_bytes(ConvOp op, const ConvShape& s) {
  if (s.samples == 0) return 0;
  const Problem problem = problem_of(op, s);
  return with_tile<F>(problem, [&](auto tile) {
    return shared_bytes<F, decltype(tile)>(cut_of<F, decltype(tile)>(problem),
                                           problem.from.channels);
  });
}

template <class F>
int64_t masked_conv_workspace(ConvOp op, const ConvShape& s, int terms) {
  return terms * term_bytes<F>(op, s);
}

template <class F>
cudaError_t masked_conv(ConvOp op, const ConvShape& s, const ConvSum<F>& sum, PerTask<F> bias,
                        F* destination, void* workspace, cudaStream_t stream) {
  return with_tile<F>(problem_of(op, s), [&](auto tile) {
    return run_tile<F, decltype(tile)>(op, s, sum, bias, destination, workspace, stream);
  });
}

#define METASPARSE_INSTANTIATE(F)                                                               \
  template size_t masked_conv_shared_bytes<F>(ConvOp, const ConvShape&);                        \
  template int64_t masked_conv_workspace<F>(ConvOp, const ConvShape&, int);                     \
  template cudaError_t masked_conv(ConvOp, const ConvShape&, const ConvSum<F>&, PerTask<F>, F*, \
                                   void*, cudaStream_t);
METASPARSE_INSTANTIATE(float)
METASPARSE_INSTANTIATE(double)
#undef METASPARSE_INSTANTIATE

}  // namespace metasparse::cuda
