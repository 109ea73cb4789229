// The data types of tensors, read and written as float.
#pragma once
#include <cstdint>
#include <cstring>

#include "interface.h"

namespace trisparse::TRISPARSE_SET {

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

inline float to_float(float number) { return number; }

inline float to_float(BFloat16 number) { return bits_as<float>(uint32_t(number.bits) << 16); }

inline float to_float(Float16 number) {
  const uint32_t sign = uint32_t(number.bits & 0x8000) << 16;
  const uint32_t rest = uint32_t(number.bits & 0x7fff) << 13;
  // 2**112 moves the exponent from half's bias to float's, subnormal numbers included
  const uint32_t finite = bits_as<uint32_t>(bits_as<float>(rest) * 0x1p112f);
  const uint32_t special = rest | 0x7f800000;
  return bits_as<float>(sign | (rest >= (0x1fu << 23) ? special : finite));
}

inline void from_float(float number, float& to) { to = number; }

inline void from_float(float number, BFloat16& to) {
  const uint32_t bits = bits_as<uint32_t>(number);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  to.bits = uint16_t(number == number ? rounded : 0x7fc0);
}

inline void from_float(float number, Float16& to) {
  const uint32_t bits = bits_as<uint32_t>(number);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const uint32_t size = bits & 0x7fffffff;
  // below half's normal numbers, adding 0.5 rounds to the spacing of its subnormal ones
  const uint32_t small = bits_as<uint32_t>(bits_as<float>(size) + 0.5f) - 0x3f000000;
  const uint32_t normal = (size - 0x38000000 + 0xfff + ((size >> 13) & 1)) >> 13;
  const uint32_t finite = size < 0x38800000 ? small : normal;
  const uint32_t large = size > 0x7f800000 ? 0x7e00 : 0x7c00;
  to.bits = uint16_t(sign | (size >= 0x477ff000 ? large : finite));
}

inline int64_t size_of(int32_t type) { return type == kFloat32 ? 4 : 2; }

template <class Number>
inline void read_numbers(const void* from, int64_t count, float* to) {
  const Number* numbers = static_cast<const Number*>(from);
  for (int64_t index = 0; index < count; ++index) to[index] = to_float(numbers[index]);
}

// `columns` neighbouring numbers of each of some rows, one row after the other
template <class Number, int columns>
inline void read_columns(const void* from, ptrdiff_t stride, int rows, float* to) {
  const Number* numbers = static_cast<const Number*>(from);
  for (int row = 0; row < rows; ++row) {
    for (int column = 0; column < columns; ++column) {
      to[row * columns + column] = to_float(numbers[row * stride + column]);
    }
  }
}

template <class Number>
inline void write_numbers(const float* from, float factor, int64_t count, void* to) {
  Number* numbers = static_cast<Number*>(to);
  for (int64_t index = 0; index < count; ++index) from_float(from[index] * factor, numbers[index]);
}

// Neighbouring numbers of a tensor of data type `type`. Not inline, as they have many callers: a fifth of the
// time that compiling takes.
[[gnu::noinline]] inline void read_numbers(const void* from, int32_t type, int64_t count, float* to) {
  if (type == kFloat32) return read_numbers<float>(from, count, to);
  if (type == kBFloat16) return read_numbers<BFloat16>(from, count, to);
  read_numbers<Float16>(from, count, to);
}

template <int columns>
[[gnu::noinline]] inline void read_columns(const void* from, int32_t type, ptrdiff_t stride, int rows,
                                           float* to) {
  if (type == kFloat32) return read_columns<float, columns>(from, stride, rows, to);
  if (type == kBFloat16) return read_columns<BFloat16, columns>(from, stride, rows, to);
  read_columns<Float16, columns>(from, stride, rows, to);
}

[[gnu::noinline]] inline void write_numbers(const float* from, float factor, int64_t count, int32_t type,
                                            void* to) {
  if (type == kFloat32) return write_numbers<float>(from, factor, count, to);
  if (type == kBFloat16) return write_numbers<BFloat16>(from, factor, count, to);
  write_numbers<Float16>(from, factor, count, to);
}

}  // namespace trisparse::TRISPARSE_SET
