// Transposed copies of 16 x 16 squares of 32-bit words.
#pragma once
#include "vector.h"

namespace trisparse::TRISPARSE_SET {

constexpr int kSquare = 16;

// Whatever numbers lie there: compilers may assume that an ordinary uint32_t is never a float
typedef uint32_t __attribute__((may_alias)) Word;

// to[column][row] = from[row][column]; strides in words
inline void transpose_square(const void* words, ptrdiff_t from_stride, void* transposed,
                             ptrdiff_t to_stride) {
  const Word* __restrict from = static_cast<const Word*>(words);
  Word* __restrict to = static_cast<Word*>(transposed);
#if defined(__AVX512F__)
  __m512i in[kSquare], pairs[kSquare];
  for (int row = 0; row < kSquare; ++row) in[row] = _mm512_loadu_si512(from + row * from_stride);
  for (int row = 0; row < kSquare; row += 2) {
    pairs[row] = _mm512_unpacklo_epi32(in[row], in[row + 1]);
    pairs[row + 1] = _mm512_unpackhi_epi32(in[row], in[row + 1]);
  }
  for (int row = 0; row < kSquare; row += 4) {  // in[row + k]: column 4q + k of four rows in each quarter q
    in[row] = _mm512_unpacklo_epi64(pairs[row], pairs[row + 2]);
    in[row + 1] = _mm512_unpackhi_epi64(pairs[row], pairs[row + 2]);
    in[row + 2] = _mm512_unpacklo_epi64(pairs[row + 1], pairs[row + 3]);
    in[row + 3] = _mm512_unpackhi_epi64(pairs[row + 1], pairs[row + 3]);
  }
  for (int k = 0; k < 4; ++k) {
    const __m512i low_even = _mm512_shuffle_i32x4(in[k], in[4 + k], 0x88);
    const __m512i low_odd = _mm512_shuffle_i32x4(in[k], in[4 + k], 0xdd);
    const __m512i high_even = _mm512_shuffle_i32x4(in[8 + k], in[12 + k], 0x88);
    const __m512i high_odd = _mm512_shuffle_i32x4(in[8 + k], in[12 + k], 0xdd);
    _mm512_storeu_si512(to + k * to_stride, _mm512_shuffle_i32x4(low_even, high_even, 0x88));
    _mm512_storeu_si512(to + (4 + k) * to_stride, _mm512_shuffle_i32x4(low_odd, high_odd, 0x88));
    _mm512_storeu_si512(to + (8 + k) * to_stride, _mm512_shuffle_i32x4(low_even, high_even, 0xdd));
    _mm512_storeu_si512(to + (12 + k) * to_stride, _mm512_shuffle_i32x4(low_odd, high_odd, 0xdd));
  }
#else
  for (int column = 0; column < kSquare; ++column) {
    for (int row = 0; row < kSquare; ++row) to[column * to_stride + row] = from[row * from_stride + column];
  }
#endif
}

}  // namespace trisparse::TRISPARSE_SET
