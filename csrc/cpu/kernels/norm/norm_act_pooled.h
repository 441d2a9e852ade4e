// Norm, activation and pooling. Values move at the gate, so bands of the planes go through it to a
// buffer on the norm's side, or from one.
#pragma once

#include "norm_sums.h"
#include "plane_packer.h"

namespace metasparse::cpu::METASPARSE_ISA::pooled {

inline constexpr int64_t kBuffers = 3;  // bands at once: the most inputs of a derivative

inline int64_t buffers(const NormActPoolShape& s) { return kBuffers * band_capacity(s); }

// ---- forward -----------------------------------------------------------------------------------

template <class T>
void forward_of_planes(const NormActPoolShape& s, const NormActPoolForward<T>& job, T* scratch) {
  if (!s.norm_first) {  // y holds the gated values until they are normalised in place
    each_band(s, [&](int64_t n, const Band& band) METASPARSE_BODY {
      open_gate(s, band, band_of_input(job.x, n, band), band_of_output(job.y, n, band),
                band_of_output(job.gate, n, band));
    });
  }
  const Planes<const T> in = s.norm_first ? job.x : Planes<const T>{job.y.data, job.y.stride};
  const int64_t plane = norm_plane(s);
  const auto read = [&](auto at, int64_t n, int64_t i)
                        METASPARSE_BODY { return at.load(in.data + n * in.stride + i); };
  const Normalisation<T> normalise =
      normalisation(job, channel_moments<T>(s.samples, plane, read, read));
  const auto normalise_all = [&](int64_t count, const T* from, T* to) METASPARSE_BODY {
    each_vector<T>(count, [&](int64_t i, auto at, int)
                              METASPARSE_BODY { at.store(to + i, normalise(at.load(from + i))); });
  };
  if (!s.norm_first) {
    for (int64_t n = 0; n < s.samples; ++n) {
      normalise_all(plane, in.data + n * in.stride, job.y.data + n * job.y.stride);
    }
    return;
  }
  each_band(s, [&](int64_t n, const Band& band) METASPARSE_BODY {
    normalise_all(band.in_size, band_of_input(job.x, n, band), scratch);
    open_gate(s, band, scratch, band_of_output(job.y, n, band), band_of_output(job.gate, n, band));
  });
}

template <class T>
void forward(const NormActPoolShape& s, const NormActPoolForward<T>& job, T* scratch) {
  if (!packs(s)) return forward_of_planes(s, job, scratch);
  Packer<T> packer(s, scratch + buffers(packed(s)));
  NormActPoolForward<T> inner = job;
  inner.x = packer.input(job.x);
  inner.y = packer.output_room();
  inner.gate = packer.gate_room();
  forward_of_planes(packed(s), inner, scratch);
  packer.unpack_output(inner.y, job.y);
  packer.unpack_gate(inner.gate, job.gate);
}

// ---- derivatives -------------------------------------------------------------------------------

template <class T, class Derivative>
void differentiate_planes(const NormActPoolShape& s, const Derivative& derivative,
                          const typename Derivative::Operands& operands, T* scratch) {
  using Operands = typename Derivative::Operands;
  const int64_t room = band_capacity(s);
  const auto enter = [&](int64_t n, const Band& band, const T** in) METASPARSE_BODY {
    const NormSide<T> side = norm_side<T>(s, operands.gate, n, band);
    METASPARSE_UNROLL
    for (int k = 0; k < Operands::kIn; ++k) {
      T* const buffer = scratch + k * room;
      in[k] = k < Operands::kInOfX
                  ? side.enter(band_of_input(operands.in[k], n, band), buffer)
                  : side.enter_back(band_of_output(operands.in[k], n, band), buffer);
    }
  };

  typename Derivative::Sums sums;
  const T mean = derivative.at().mean;
  each_band(s, [&](int64_t n, const Band& band) METASPARSE_BODY {
    const T* in[Operands::kIn];
    enter(n, band, in);
    typename Derivative::Sums::Stretch stretch;
    each_vector<T>(norm_side<T>(s, operands.gate, n, band).size(),
                   [&](int64_t i, auto at, int chain) METASPARSE_BODY {
                     Vec<T> values[Operands::kIn];
                     METASPARSE_UNROLL
                     for (int k = 0; k < Operands::kIn; ++k) values[k] = at.load(in[k] + i);
                     stretch.add(at, chain, values, mean);
                   });
    sums.add(stretch);
  });

  const auto combination =
      derivative.combination(sums, static_cast<double>(s.samples * norm_plane(s)));
  each_band(s, [&](int64_t n, const Band& band) METASPARSE_BODY {
    const NormSide<T> side = norm_side<T>(s, operands.gate, n, band);
    const T* in[Operands::kIn];
    enter(n, band, in);
    T* destination[Operands::kOut];
    T* out[Operands::kOut];  // a buffer may be that of an input, which is read first
    bool stream = s.stream;
    METASPARSE_UNROLL
    for (int k = 0; k < Operands::kOut; ++k) {
      const bool of_x = k < Operands::kOutOfX;
      T* const buffer = scratch + k * room;
      destination[k] =
          of_x ? band_of_input(operands.out[k], n, band) : band_of_output(operands.out[k], n, band);
      out[k] =
          of_x ? side.result_back(destination[k], buffer) : side.result(destination[k], buffer);
      stream &= out[k] == destination[k] && aligned(out[k]);
    }
    each_result<T>(stream, side.size(), [&](int64_t i, auto at, int) METASPARSE_BODY {
      Vec<T> values[Operands::kIn], results[Operands::kOut];
      METASPARSE_UNROLL
      for (int k = 0; k < Operands::kIn; ++k) values[k] = at.load(in[k] + i);
      combination(values, results);
      METASPARSE_UNROLL
      for (int k = 0; k < Operands::kOut; ++k) at.store(out[k] + i, results[k]);
    });
    METASPARSE_UNROLL
    for (int k = 0; k < Operands::kOut; ++k) {
      if (k < Operands::kOutOfX) {
        side.leave_back(out[k], destination[k]);
      } else {
        side.leave(out[k], destination[k]);
      }
    }
  });
  if (s.stream) finish_streams();
}

template <class T, class Derivative>
void differentiate(const NormActPoolShape& s, const Derivative& derivative, T* scratch) {
  using Operands = typename Derivative::Operands;
  const Operands operands = derivative.operands();
  if (!packs(s)) return differentiate_planes(s, derivative, operands, scratch);
  Packer<T> packer(s, scratch + buffers(packed(s)));
  Operands inner;
  inner.gate = packer.gate(operands.gate);
  for (int k = 0; k < Operands::kIn; ++k) {
    inner.in[k] =
        k < Operands::kInOfX ? packer.input(operands.in[k]) : packer.output(operands.in[k]);
  }
  for (int k = 0; k < Operands::kOut; ++k) {
    inner.out[k] = k < Operands::kOutOfX ? packer.input_room() : packer.output_room();
  }
  differentiate_planes(packed(s), derivative, inner, scratch);
  for (int k = 0; k < Operands::kOut; ++k) {
    if (k < Operands::kOutOfX) {
      packer.unpack_input(inner.out[k], operands.out[k]);
    } else {
      packer.unpack_output(inner.out[k], operands.out[k]);
    }
  }
}

inline int64_t scratch_size(const NormActPoolShape& s) {
  return packs(s) ? buffers(packed(s)) + Packer<float>::values(s) : buffers(s);
}

}  // namespace metasparse::cpu::METASPARSE_ISA::pooled
