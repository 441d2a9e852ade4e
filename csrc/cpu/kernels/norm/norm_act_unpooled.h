// Norm and activation without pooling. No value moves, so gate and norm are one pass over the
// planes for the sums and one for the results.
#pragma once

#include "norm_sums.h"

namespace metasparse::cpu::METASPARSE_ISA::unpooled {

// ---- between the passes ------------------------------------------------------------------------
// A channel's planes often lie a power of two apart, in the same few sets of every cache: what the
// second pass is to find there, the first one copies to lie one plane below the other. The end of
// each is filled up with zeros, so that no copy needs to stop within a vector. Where planes are
// large they are read again where they are: a copy of them would leave the near caches, too.

inline constexpr int64_t kSmallPlane = 512;
inline constexpr int64_t kPackedValues = 1 << 16;

inline int64_t plane_size(const NormActPoolShape& s) { return s.height * s.width; }

inline bool packs(const NormActPoolShape& s) {
  return plane_size(s) <= kSmallPlane && s.samples * plane_size(s) <= kPackedValues;
}

inline int64_t packed_plane(const NormActPoolShape& s) { return (plane_size(s) + 15) / 16 * 16; }

inline int64_t scratch_size(const NormActPoolShape& s) {
  constexpr int64_t kMostInputs = 3;
  return packs(s) ? kMostInputs * s.samples * packed_plane(s) : 0;
}

// From a plane to the one after the next of its channel. Where planes are small no hardware
// foresees what comes next, so the loops ask for it.
METASPARSE_INLINE int64_t ahead(int64_t stride) { return 2 * stride; }

// ---- the gate ----------------------------------------------------------------------------------

enum class Gate { none, before_norm, behind_norm };

// The lanes of a vector that the gate lets through.
template <class T, Gate kGate>
struct Open {
  CodeVec<T> lanes{};

  template <class At>
  METASPARSE_INLINE Open(At at, const Planes<const uint8_t>& gate, int64_t n, int64_t i) {
    if constexpr (kGate != Gate::none) {
      lanes = at.load_codes(gate.data + n * gate.stride + i) == 0;
    }
  }
  // The gate stands between x and the norm, or between the norm and y.
  METASPARSE_INLINE Vec<T> pass(Vec<T> v, bool of_x) const {
    if constexpr (kGate == Gate::none) return v;
    return of_x == (kGate == Gate::before_norm) ? (lanes ? v : Vec<T>{}) : v;
  }
};

// body.operator()<gate, packs>()
template <class Body>
void choose(const NormActPoolShape& s, const Body& body) {
  const auto with_gate = [&]<Gate kGate>() {
    if (packs(s)) return body.template operator()<kGate, true>();
    body.template operator()<kGate, false>();
  };
  if (!s.relu) return with_gate.template operator()<Gate::none>();
  if (s.norm_first) return with_gate.template operator()<Gate::behind_norm>();
  with_gate.template operator()<Gate::before_norm>();
}

// ---- forward -----------------------------------------------------------------------------------

template <class T, Gate kGate, bool kPack>
void forward_as(const NormActPoolShape& s, const NormActPoolForward<T>& job, T* scratch) {
  const int64_t size = plane_size(s), packed = packed_plane(s);
  const Planes<const T> x = job.x;
  const auto read = [&](auto at, int64_t n, int64_t i) METASPARSE_BODY {
    const T* const p = x.data + n * x.stride + i;
    if constexpr (kPack) __builtin_prefetch(p + ahead(x.stride));
    Vec<T> v = at.load(p);
    CodeVec<T> code;
    if constexpr (kGate == Gate::before_norm) close_negative<T>(v, code);
    if constexpr (kPack) store_unaligned(scratch + n * packed + i, v);
    return v;
  };
  const auto read_again = [&](auto at, int64_t n, int64_t i) METASPARSE_BODY {
    if constexpr (kPack) return load_unaligned(scratch + n * packed + i);
    return read(at, n, i);
  };
  const Normalisation<T> normalise =
      normalisation(job, channel_moments<T>(s.samples, size, read, read_again));
  for (int64_t n = 0; n < s.samples; ++n) {
    T* const y = job.y.data + n * job.y.stride;
    uint8_t* const gate = job.gate.data + n * job.gate.stride;
    const bool stream = !kPack && s.stream && aligned(y);
    each_result<T>(stream, size, [&](int64_t i, auto at, int) METASPARSE_BODY {
      if constexpr (kPack) __builtin_prefetch(y + i + ahead(job.y.stride), /*write*/ 1);
      Vec<T> v = read_again(at, n, i);
      CodeVec<T> code{};
      if constexpr (kGate == Gate::before_norm) close_negative<T>(v, code);
      v = normalise(v);
      if constexpr (kGate == Gate::behind_norm) close_negative<T>(v, code);
      at.store(y + i, v);
      if constexpr (kGate != Gate::none) at.store_codes(gate + i, code);
    });
  }
  if (s.stream) finish_streams();
}

template <class T>
void forward(const NormActPoolShape& s, const NormActPoolForward<T>& job, T* scratch) {
  choose(s, [&]<Gate kGate, bool kPack>() { forward_as<T, kGate, kPack>(s, job, scratch); });
}

// ---- derivatives -------------------------------------------------------------------------------

template <class T, Gate kGate, bool kPack, class Derivative>
void differentiate_as(const NormActPoolShape& s, const Derivative& derivative, T* scratch) {
  using Operands = typename Derivative::Operands;
  const Operands operands = derivative.operands();
  const int64_t size = plane_size(s), packed = packed_plane(s), room = s.samples * packed;
  const T mean = derivative.at().mean;
  const auto read = [&](auto at, int64_t n, int64_t i, Vec<T>* in) METASPARSE_BODY {
    const Open<T, kGate> open(at, operands.gate, n, i);
    METASPARSE_UNROLL
    for (int k = 0; k < Operands::kIn; ++k) {
      const T* const p = operands.in[k].data + n * operands.in[k].stride + i;
      if constexpr (kPack) __builtin_prefetch(p + ahead(operands.in[k].stride));
      in[k] = open.pass(at.load(p), k < Operands::kInOfX);
      if constexpr (kPack) store_unaligned(scratch + k * room + n * packed + i, in[k]);
    }
  };
  const auto read_again = [&](auto at, int64_t n, int64_t i, Vec<T>* in) METASPARSE_BODY {
    if constexpr (!kPack) return read(at, n, i, in);
    METASPARSE_UNROLL
    for (int k = 0; k < Operands::kIn; ++k) {
      in[k] = load_unaligned(scratch + k * room + n * packed + i);
    }
  };

  typename Derivative::Sums sums;
  constexpr int64_t kValues = 1024;
  each_section(s.samples, size, kValues, [&](const Section& section) METASPARSE_BODY {
    typename Derivative::Sums::Stretch stretch;
    for (int64_t n = section.first; n < section.last; ++n) {
      each_vector<T>(section.size, [&](int64_t i, auto at, int chain) METASPARSE_BODY {
        Vec<T> in[Operands::kIn];
        read(at, n, section.begin + i, in);
        stretch.add(at, chain, in, mean);
      });
    }
    sums.add(stretch);
  });
  const auto combination = derivative.combination(sums, static_cast<double>(s.samples * size));
  for (int64_t n = 0; n < s.samples; ++n) {
    bool stream = !kPack && s.stream;
    for (const Planes<T>& out : operands.out) stream &= aligned(out.data + n * out.stride);
    each_result<T>(stream, size, [&](int64_t i, auto at, int) METASPARSE_BODY {
      Vec<T> in[Operands::kIn], out[Operands::kOut];
      read_again(at, n, i, in);
      combination(in, out);
      const Open<T, kGate> open(at, operands.gate, n, i);
      METASPARSE_UNROLL
      for (int k = 0; k < Operands::kOut; ++k) {
        T* const p = operands.out[k].data + n * operands.out[k].stride + i;
        if constexpr (kPack) __builtin_prefetch(p + ahead(operands.out[k].stride), /*write*/ 1);
        at.store(p, open.pass(out[k], k < Operands::kOutOfX));
      }
    });
  }
  if (s.stream) finish_streams();
}

template <class T, class Derivative>
void differentiate(const NormActPoolShape& s, const Derivative& derivative, T* scratch) {
  choose(s, [&]<Gate kGate, bool kPack>() {
    differentiate_as<T, kGate, kPack>(s, derivative, scratch);
  });
}

}  // namespace metasparse::cpu::METASPARSE_ISA::unpooled
