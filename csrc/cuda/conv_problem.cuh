#pragma once
// From an operation on tensors to the sparse convolution behind it. At stride 1 the input gradient
// is the forward pass of the transposed, rotated kernels.
#include "conv_block.cuh"
#include "masked_conv.h"

namespace metasparse::cuda {

struct Problem {
  Planes from, to;
  int64_t samples, stride, padding;
  bool input_grad;
};

inline Problem problem_of(ConvOp op, const ConvShape& s) {
  const Planes x = {static_cast<int>(s.in_channels), static_cast<int>(s.height),
                    static_cast<int>(s.width)};
  const Planes y = {static_cast<int>(s.out_channels), static_cast<int>(s.out_height),
                    static_cast<int>(s.out_width)};
  const bool input_grad = op == ConvOp::input_grad;
  return {input_grad ? y : x, input_grad ? x : y, s.samples, s.stride, s.padding, input_grad};
}

template <class F, class Tile>
Cut cut_of(const Problem& p) {
  return make_cut<F, Tile>(Tile::units(p.to.height, p.padding), Tile::units(p.to.width, p.padding),
                           p.samples, p.from.channels);
}

// The packed kernels of one term; those of two lie one after the other.
template <class F>
int64_t term_bytes(ConvOp op, const ConvShape& s) {
  constexpr int64_t kPiece = 16;
  const Problem p = problem_of(op, s);
  return (packed_bytes<F>(s.tasks, p.from.channels, p.to.channels) + kPiece - 1) / kPiece * kPiece;
}

inline bool shared_by_tasks(int64_t tasks, bool present, int64_t task_stride) {
  return tasks == 1 || !present || task_stride == 0;
}

template <class F>
cudaError_t pack_term(const ConvShape& s, const Problem& problem, const ConvTerm<F>& from,
                      void* workspace, Term<F>& to, cudaStream_t stream) {
  const bool shared = shared_by_tasks(s.tasks, true, from.weight.task_stride) &&
                      shared_by_tasks(s.tasks, from.mask.data != nullptr, from.mask.task_stride);
  to = {packed_kernels<F>(shared ? 1 : s.tasks, problem.from.channels, problem.to.channels,
                          workspace),
        from.source};
  const KernelsToPack<F> kernels = {from.weight,
                                    from.mask,
                                    static_cast<int>(s.out_channels),
                                    static_cast<int>(s.in_channels),
                                    problem.input_grad,
                                    problem.input_grad && s.stride == 1};
  return pack_kernels(kernels, to.packed, stream);
}

template <class F, class Tile>
cudaError_t run_tile(ConvOp op, const ConvShape& s, const ConvSum<F>& sum, PerTask<F> bias,
                     F* destination, void* workspace, cudaStream_t stream) {
  const Problem problem = problem_of(op, s);
  if (s.tasks * s.samples * problem.to.channels * problem.to.size() == 0) return cudaSuccess;
  SparseConv<F> conv = {{},
                        sum.count,
                        bias,
                        destination,
                        problem.from,
                        problem.to,
                        static_cast<int>(s.samples),
                        static_cast<int>(Tile::origin(s.padding, problem.input_grad)),
                        static_cast<int>(s.padding),
                        cut_of<F, Tile>(problem)};
  const int64_t bytes = term_bytes<F>(op, s);
  for (int term = 0; term < sum.count; ++term) {
    auto* const space = static_cast<unsigned char*>(workspace) + term * bytes;
    const auto error = pack_term(s, problem, sum.terms[term], space, conv.terms[term], stream);
    if (error != cudaSuccess) return error;
  }
  return run_sparse<F, Tile>(conv, s.tasks, stream);
}

}  // namespace metasparse::cuda
