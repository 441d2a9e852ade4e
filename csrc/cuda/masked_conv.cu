// The forward pass and the input gradient. At stride 1 the input gradient is the forward pass of
// the transposed, rotated kernels; at stride 2 it has a tile of its own.
#include "conv_direct.cuh"

namespace metasparse::cuda {
namespace {

// Units one below the other of a thread. float64 is there for checks; its registers are twice as
// wide.
template <class F>
struct Tiles;

template <>
struct Tiles<float> {
  using Tall = PixelTile<1, 8>;
  using Flat = PixelTile<1, 4>;  // for pictures of up to four rows
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

// The direct convolution behind an operation, free of its operands.
struct Problem {
  Planes from, to;
  int64_t samples, stride, padding;
  bool input_grad;

  int64_t unit_rows() const { return quads() ? (to.height - 1 + padding) / 2 + 1 : to.height; }
  int64_t unit_columns() const { return quads() ? (to.width - 1 + padding) / 2 + 1 : to.width; }
  bool quads() const { return input_grad && stride == 2; }
  int origin() const {
    if (quads()) return 1;
    return static_cast<int>(input_grad ? 2 - padding : padding);
  }
};

Problem problem_of(ConvOp op, const ConvShape& s) {
  const Planes x = {static_cast<int>(s.in_channels), static_cast<int>(s.height),
                    static_cast<int>(s.width)};
  const Planes y = {static_cast<int>(s.out_channels), static_cast<int>(s.out_height),
                    static_cast<int>(s.out_width)};
  const bool input_grad = op == ConvOp::input_grad;
  return {input_grad ? y : x, input_grad ? x : y, s.samples, s.stride, s.padding, input_grad};
}

// Calls f with the tile that serves a problem.
template <class F, class Function>
auto with_tile(const Problem& problem, const Function& f) {
  using T = Tiles<F>;
  if (problem.quads()) return f(typename T::Quads{});
  if (problem.stride == 2) return f(typename T::Strided{});
  if (problem.to.height <= T::Flat::kUnits) return f(typename T::Flat{});
  return f(typename T::Tall{});
}

bool shared_by_tasks(int64_t tasks, bool present, int64_t task_stride) {
  return tasks == 1 || !present || task_stride == 0;
}

template <class F>
cudaError_t run(ConvOp op, const ConvShape& s, PerTask<F> source, PerTask<F> weight,
                PerTask<F> mask, PerTask<F> bias, F* destination, void* workspace,
                cudaStream_t stream) {
  const Problem problem = problem_of(op, s);
  if (s.tasks * s.samples * problem.to.channels * problem.to.size() == 0) return cudaSuccess;
  const bool shared = shared_by_tasks(s.tasks, true, weight.task_stride) &&
                      shared_by_tasks(s.tasks, mask.data != nullptr, mask.task_stride);
  const auto packed = packed_kernels<F>(shared ? 1 : s.tasks, problem.from.channels,
                                        problem.to.channels, workspace);
  const KernelsToPack<F> kernels = {weight,
                                    mask,
                                    static_cast<int>(s.out_channels),
                                    static_cast<int>(s.in_channels),
                                    problem.input_grad,
                                    problem.input_grad && s.stride == 1};
  const auto error = pack_kernels(kernels, packed, stream);
  if (error != cudaSuccess) return error;
  return with_tile<F>(problem, [&](auto tile) {
    using Tile = decltype(tile);
    const Cut cut = make_cut<F, Tile>(problem.unit_rows(), problem.unit_columns(), s.samples,
                                      problem.from.channels);
    const DirectConv<F> conv = {packed,
                                source,
                                bias,
                                destination,
                                problem.from,
                                problem.to,
                                static_cast<int>(s.samples),
                                problem.origin(),
                                static_cast<int>(s.padding),
                                cut};
    return run_direct<F, Tile>(conv, s.tasks, stream);
  });
}

}  // namespace

template <class F>
bool takes(ConvOp op, const ConvShape& s) {
  constexpr int64_t kReach = int64_t{1} << 30, kGrid = 65535;
  const bool window = (s.stride == 1 || s.stride == 2) && (s.padding == 0 || s.padding == 1);
  const bool sizes = s.tasks <= kGrid && s.in_channels <= kGrid && s.out_channels <= kGrid &&
                     s.samples * s.in_channels * s.height * s.width < kReach &&
                     s.samples * s.out_channels * s.out_height * s.out_width < kReach;
  if (!window || !sizes) return false;
  if (op == ConvOp::weight_grad || s.samples == 0) return true;
  const Problem problem = problem_of(op, s);
  return with_tile<F>(problem, [&](auto tile) {
    using Tile = decltype(tile);
    const auto sources = problem.from.channels;
    const Cut cut =
        make_cut<F, Tile>(problem.unit_rows(), problem.unit_columns(), s.samples, sources);
    return shared_bytes<F, Tile>(cut, sources) <= kSharedLimit;
  });
}

template <class F>
cudaError_t masked_conv(const ConvShape& shape, PerTask<F> x, PerTask<F> weight, PerTask<F> mask,
                        PerTask<F> bias, F* y, void* workspace, cudaStream_t stream) {
  return run(ConvOp::forward, shape, x, weight, mask, bias, y, workspace, stream);
}

template <class F>
cudaError_t masked_conv_input_grad(const ConvShape& shape, PerTask<F> grad, PerTask<F> weight,
                                   PerTask<F> mask, F* grad_x, void* workspace,
                                   cudaStream_t stream) {
  return run(ConvOp::input_grad, shape, grad, weight, mask, PerTask<F>{}, grad_x, workspace,
             stream);
}

template <class F>
int64_t masked_conv_workspace(ConvOp op, const ConvShape& s) {
  return op == ConvOp::input_grad ? packed_bytes<F>(s.tasks, s.out_channels, s.in_channels)
                                  : packed_bytes<F>(s.tasks, s.in_channels, s.out_channels);
}

#define METASPARSE_INSTANTIATE(F)                                                        \
  template bool takes<F>(ConvOp, const ConvShape&);                                      \
  template int64_t masked_conv_workspace<F>(ConvOp, const ConvShape&);                   \
  template cudaError_t masked_conv(const ConvShape&, PerTask<F>, PerTask<F>, PerTask<F>, \
                                   PerTask<F>, F*, void*, cudaStream_t);                 \
  template cudaError_t masked_conv_input_grad(const ConvShape&, PerTask<F>, PerTask<F>,  \
                                              PerTask<F>, F*, void*, cudaStream_t);
METASPARSE_INSTANTIATE(float)
METASPARSE_INSTANTIATE(double)
#undef METASPARSE_INSTANTIATE

}  // namespace metasparse::cuda
