// One register of floats, as wide as this instruction set has them, in the compilers' vector language.
#pragma once
#include <cstdint>
#include <cstring>
// a second to compile, in each source file; AVX2 does without
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace trisparse::TRISPARSE_SET {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));

constexpr float kInfinity = __builtin_inff();

template <class Vector, class Number>
inline Vector load_as(const Number* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

inline Floats load(const float* from) { return load_as<Floats>(from); }
inline void store(float* to, Floats vector) { std::memcpy(to, &vector, sizeof vector); }
inline Floats splat(float number) { return number - Floats{}; }
inline Ints splat(int32_t number) { return number - Ints{}; }

inline Floats select(Ints condition, Floats yes, Floats no) { return condition ? yes : no; }

// NaN where the second argument is NaN
inline Floats maximum(Floats a, Floats b) { return a > b ? a : b; }

inline bool any_above(Floats vector, float bound) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)vector, _mm512_set1_ps(bound), _CMP_GT_OQ) != 0;
#elif defined(__AVX__)
  return __builtin_ia32_movmskps256((Floats)(vector > splat(bound))) != 0;
#else
  bool found = false;
  for (int lane = 0; lane < kLanes; ++lane) found |= vector[lane] > bound;
  return found;
#endif
}

// of the numbers among the lanes; -inf if all are NaN
inline float highest(Floats vector) {
  float found = -kInfinity;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (vector[lane] > found) found = vector[lane];
  }
  return found;
}

inline float sum(Floats vector) {
  float lanes[kLanes];
  store(lanes, vector);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

// Polynomials for 2**f on [0, 1], exact at both ends, relative minimax error: fitted by us, see
// docs/kernels.md
template <bool Precise>
inline Floats exp2_fraction(Floats f) {
  if constexpr (Precise) {  // 2.3e-9, below the rounding of its own arithmetic
    Floats y = splat(0x1.c765a8p-13f);
    y = y * f + 0x1.462150p-10f;
    y = y * f + 0x1.3d217cp-7f;
    y = y * f + 0x1.c686b4p-5f;
    y = y * f + 0x1.ebfd74p-3f;
    y = y * f + 0x1.62e42ap-1f;
    return y * f + 1.0f;
  } else {  // 1.1e-4, a twentieth of bfloat16's rounding
    Floats y = splat(0x1.4095eap-4f);
    y = y * f + 0x1.cf7a68p-3f;
    y = y * f + 0x1.640ea8p-1f;
    return y * f + 1.0f;
  }
}

// 2**x; 0 for x below -126 or so, NaN for NaN. x must stay below 127.
template <bool Precise>
inline Floats exp2(Floats x) {
#if defined(__AVX512F__)
  const __m512 wide = (__m512)x;
  const Floats fraction = (Floats)_mm512_reduce_ps(wide, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  return (Floats)_mm512_scalef_ps((__m512)exp2_fraction<Precise>(fraction), wide);
#else
  const Floats lowest = splat(-126.0f);
  const Floats clamped = maximum(lowest, x);
  // adding 1.5 * 2**23 rounds to an integer, which then stands in the low bits
  const Floats shifted = (clamped - 0.5f) + 12582912.0f;
  const Floats fraction = clamped - (shifted - 12582912.0f);
  const Floats power = (Floats)(((Ints)shifted + 127) << 23);
  return select(x < lowest, Floats{}, exp2_fraction<Precise>(fraction) * power);
#endif
}

}  // namespace trisparse::TRISPARSE_SET
