// In place of the compiler's header: the AVX-512 functions that our sources call, in the compilers' vector
// language, for processors without AVX-512. Found first where the sources are compiled with -D__AVX512F__.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

typedef float __m512 __attribute__((vector_size(64), may_alias));
typedef long long __m512i __attribute__((vector_size(64), may_alias));
typedef long long __m256i __attribute__((vector_size(32), may_alias));
typedef uint16_t __m512bh __attribute__((vector_size(64), may_alias));
typedef uint16_t __m256bh __attribute__((vector_size(32), may_alias));

constexpr int _CMP_GT_OQ = 30;
constexpr int _MM_FROUND_TO_NEG_INF = 1, _MM_FROUND_NO_EXC = 8;

namespace emulated {

typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint64_t Longs __attribute__((vector_size(64)));

// products of bfloat16 take subnormal numbers for zero, and make none
inline float without_subnormal(float number) {
  return number != 0 && std::fabs(number) < 0x1p-126f ? std::copysign(0.0f, number) : number;
}

// to nearest, ties to even; subnormal numbers count as zero
inline uint16_t to_bfloat16(float number) {
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  if (number != number) return uint16_t(bits >> 16 | 0x40);
  if ((bits & 0x7f800000) == 0) return uint16_t((bits & 0x80000000) >> 16);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float from_bfloat16(uint16_t half) {
  const uint32_t bits = (half & 0x7f80) == 0 ? uint32_t(half & 0x8000) << 16 : uint32_t(half) << 16;
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

// 128-bit quarters of both, interleaved: of each quarter of `count` items the lower or the upper half
template <class Vector>
inline Vector unpacked(Vector a, Vector b, bool upper) {
  constexpr int count = 16 / sizeof(a[0]);
  Vector out{};
  for (int quarter = 0; quarter < 4; ++quarter) {
    for (int index = 0; index < count / 2; ++index) {
      const int from = quarter * count + (upper ? count / 2 : 0) + index;
      out[quarter * count + 2 * index] = a[from];
      out[quarter * count + 2 * index + 1] = b[from];
    }
  }
  return out;
}

}  // namespace emulated

inline __m512i _mm512_setzero_si512() { return __m512i{}; }
inline __m512 _mm512_set1_ps(float number) { return number - __m512{}; }

inline __m512i _mm512_set1_epi16(short number) {
  const uint16_t bits = uint16_t(number);
  __m512bh all;
  for (int index = 0; index < 32; ++index) all[index] = bits;
  return (__m512i)all;
}

inline __m512i _mm512_loadu_si512(const void* from) {
  __m512i vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

inline void _mm512_storeu_si512(void* to, __m512i vector) { std::memcpy(to, &vector, sizeof vector); }

inline __m256i _mm256_loadu_si256(const __m256i* from) {
  __m256i vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

inline __m512i _mm512_or_si512(__m512i a, __m512i b) { return a | b; }

inline __m512i _mm512_slli_epi32(__m512i vector, unsigned count) {
  return (__m512i)((emulated::Words)vector << count);
}

inline __m512i _mm512_cvtepu16_epi32(__m256i vector) {
  const __m256bh halves = (__m256bh)vector;
  emulated::Words words{};
  for (int index = 0; index < 16; ++index) words[index] = halves[index];
  return (__m512i)words;
}

// b and behind it a, from word `count` on
inline __m512i _mm512_alignr_epi32(__m512i a, __m512i b, int count) {
  uint32_t both[32];
  std::memcpy(both, &b, sizeof b);
  std::memcpy(both + 16, &a, sizeof a);
  return _mm512_loadu_si512(both + count);
}

inline __m512i _mm512_unpacklo_epi32(__m512i a, __m512i b) {
  return (__m512i)emulated::unpacked((emulated::Words)a, (emulated::Words)b, false);
}
inline __m512i _mm512_unpackhi_epi32(__m512i a, __m512i b) {
  return (__m512i)emulated::unpacked((emulated::Words)a, (emulated::Words)b, true);
}
inline __m512i _mm512_unpacklo_epi64(__m512i a, __m512i b) {
  return (__m512i)emulated::unpacked((emulated::Longs)a, (emulated::Longs)b, false);
}
inline __m512i _mm512_unpackhi_epi64(__m512i a, __m512i b) {
  return (__m512i)emulated::unpacked((emulated::Longs)a, (emulated::Longs)b, true);
}

// two quarters of a, then two of b, each named by two bits
inline __m512i _mm512_shuffle_i32x4(__m512i a, __m512i b, int quarters) {
  __m512i out{};
  for (int quarter = 0; quarter < 4; ++quarter) {
    const __m512i& source = quarter < 2 ? a : b;
    const int from = quarters >> 2 * quarter & 3;
    for (int half = 0; half < 2; ++half) out[2 * quarter + half] = source[2 * from + half];
  }
  return out;
}

inline uint16_t _mm512_cmp_ps_mask(__m512 a, __m512 b, int) {  // _CMP_GT_OQ
  uint16_t mask = 0;
  for (int lane = 0; lane < 16; ++lane) mask = uint16_t(mask | int(a[lane] > b[lane]) << lane);
  return mask;
}

// what is left of a number above the whole number below it; 0 of an infinity
inline __m512 _mm512_reduce_ps(__m512 vector, int) {
  for (int lane = 0; lane < 16; ++lane)
    vector[lane] = std::isinf(vector[lane]) ? 0.0f : vector[lane] - std::floor(vector[lane]);
  return vector;
}

// a times 2 to the whole number below b, rounded once
inline __m512 _mm512_scalef_ps(__m512 a, __m512 b) {
  for (int lane = 0; lane < 16; ++lane) {
    const float power = b[lane] > 1000 ? 1000 : b[lane] < -1000 ? -1000 : b[lane];
    if (power != power) {
      a[lane] = power;
      continue;
    }
    const int64_t bits = (1023 + int64_t(std::floor(power))) << 52;
    double factor;
    std::memcpy(&factor, &bits, sizeof bits);
    a[lane] = float(a[lane] * factor);
  }
  return a;
}

inline __m512bh _mm512_cvtne2ps_pbh(__m512 a, __m512 b) {
  __m512bh out{};
  for (int lane = 0; lane < 16; ++lane) {
    out[lane] = emulated::to_bfloat16(b[lane]);
    out[16 + lane] = emulated::to_bfloat16(a[lane]);
  }
  return out;
}

inline __m256bh _mm512_cvtneps_pbh(__m512 a) {
  __m256bh out{};
  for (int lane = 0; lane < 16; ++lane) out[lane] = emulated::to_bfloat16(a[lane]);
  return out;
}

inline __m512 _mm512_dpbf16_ps(__m512 sums, __m512bh a, __m512bh b) {
  for (int lane = 0; lane < 16; ++lane) {
    float sum = emulated::without_subnormal(sums[lane]);
    for (int half = 1; half >= 0; --half) {
      const float left = emulated::from_bfloat16(a[2 * lane + half]);
      sum = emulated::without_subnormal(sum + left * emulated::from_bfloat16(b[2 * lane + half]));
    }
    sums[lane] = sum;
  }
  return sums;
}
