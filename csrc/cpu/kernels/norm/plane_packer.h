// Small planes, copied to lie one below the other.
#pragma once

#include "gate_bands.h"

namespace metasparse::cpu::METASPARSE_ISA {

// Planes of a few vectors or less would spend the time on their ends, and a channel's planes often
// lie a power of two apart, in the same few sets of every cache. Where their height is even, they
// are copied to lie one below the other and are then one tall plane. Each copy asks for what comes
// next in memory, the plane of the next channel: no hardware foresees it.

inline constexpr int64_t kSmallPlane = 512;
inline constexpr int64_t kPackedValues = 1 << 16;

inline bool packs(const NormActPoolShape& s) {
  const int64_t plane = s.height * s.width;
  return s.samples > 1 && plane <= kSmallPlane && s.samples * plane <= kPackedValues &&
         s.height % 2 == 0;
}

inline NormActPoolShape packed(NormActPoolShape s) {
  s.height *= s.samples;
  s.samples = 1;
  s.stream = false;  // to be unpacked at once
  return s;
}

template <class T>
class Packer {
 public:
  Packer(const NormActPoolShape& shape, T* room) : shape_(shape), room_(room) {}

  // Room for three tensors of x's size, two of y's and the gate.
  static int64_t values(const NormActPoolShape& s) { return 6 * s.samples * s.height * s.width; }

  Planes<const T> input(const Planes<const T>& x) { return copied(x, input_size()); }
  Planes<const T> output(const Planes<const T>& y) { return copied(y, output_size()); }
  Planes<const uint8_t> gate(const Planes<const uint8_t>& gate) {
    const Planes<uint8_t> room = gate_room();
    copy_codes(gate, room);
    return {room.data, 0};
  }

  Planes<T> input_room() { return take(input_size()); }
  Planes<T> output_room() { return take(output_size()); }
  Planes<uint8_t> gate_room() {
    return {reinterpret_cast<uint8_t*>(take(output_size()).data), output_size()};
  }

  void unpack_input(const Planes<T>& from, const Planes<T>& to) const {
    copy({from.data, from.stride}, to, input_size());
  }
  void unpack_output(const Planes<T>& from, const Planes<T>& to) const {
    copy({from.data, from.stride}, to, output_size());
  }
  void unpack_gate(const Planes<uint8_t>& from, const Planes<uint8_t>& to) const {
    copy_codes({from.data, from.stride}, to);
  }

 private:
  int64_t input_size() const { return shape_.height * shape_.width; }
  int64_t output_size() const { return out_height(shape_) * out_width(shape_); }

  Planes<T> take(int64_t size) {
    T* const data = room_;
    room_ += shape_.samples * size;
    return {data, size};
  }
  Planes<const T> copied(const Planes<const T>& planes, int64_t size) {
    const Planes<T> room = take(size);
    copy(planes, room, size);
    return {room.data, 0};
  }
  void copy(const Planes<const T>& from, const Planes<T>& to, int64_t size) const {
    for (int64_t n = 0; n < shape_.samples; ++n) {
      const T* source = from.data + n * from.stride;
      T* target = to.data + n * to.stride;
      each_vector<T>(size, [&](int64_t i, auto at, int) METASPARSE_BODY {
        __builtin_prefetch(source + size + i);
        __builtin_prefetch(target + size + i, /*write*/ 1);
        at.store(target + i, at.load(source + i));
      });
    }
  }
  void copy_codes(const Planes<const uint8_t>& from, const Planes<uint8_t>& to) const {
    for (int64_t n = 0; n < shape_.samples; ++n) {
      const uint8_t* source = from.data + n * from.stride;
      uint8_t* target = to.data + n * to.stride;
      each_vector<T>(output_size(), [&](int64_t i, auto at, int) METASPARSE_BODY {
        at.store_codes(target + i, at.load_codes(source + i));
      });
    }
  }

  const NormActPoolShape& shape_;
  T* room_;
};

}  // namespace metasparse::cpu::METASPARSE_ISA
