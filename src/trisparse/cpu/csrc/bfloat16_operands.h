// bfloat16 operands of products with float sums, as AVX-512 packs and rounds them.
//
// The instructions that multiply them want pairs of depths side by side: row p of a right operand's panel is
// (x[2p][c], x[2p + 1][c]) for its 16 columns c.
#pragma once
#include "matrices.h"
#include "number.h"
#include "transpose.h"
#include "vector.h"

namespace trisparse::TRISPARSE_SET {

class BFloat16Operands {
 public:
  using Element = uint16_t;  // the bits of a bfloat16
  static constexpr bool kRounds = true;

  static void store_elements(Element* to, const Floats* from, int vectors) {
    for (int index = 0; index < vectors; index += 2) {
      const auto words = _mm512_cvtne2ps_pbh((__m512)from[index + 1], (__m512)from[index]);
      std::memcpy(to + index * kLanes, &words, sizeof words);
    }
  }

  // `total` plus the elements, by lanes
  static Floats add_elements(const Element* from, int vectors, Floats total) {
    const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
    for (int index = 0; index < vectors; index += 2) {
      const __m512bh pairs = (__m512bh)_mm512_loadu_si512(from + index * kLanes);
      total = (Floats)_mm512_dpbf16_ps((__m512)total, pairs, ones);
    }
    return total;
  }

  // as `store_elements` rounds
  static Floats rounded(Floats x) {
    const __m256i words = (__m256i)_mm512_cvtneps_pbh((__m512)x);
    return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16);
  }

  // May rows of a tensor serve as operands where they lie?
  static bool in_place(int32_t) { return true; }

  static float element_to_float(Element element) { return to_float(BFloat16{element}); }

  static void stage(const void* from, int32_t, int64_t count, Element* to) {
    std::memcpy(to, from, 2 * size_t(count));
  }

  static void pack_columns(const Element* from, ptrdiff_t stride, int columns, int depth, Element* to) {
    for (int column = 0; column < columns; column += kPanel) {
      for (int k = 0; k < depth; k += 2 * kSquare) {
        transpose_square(from + column * stride + k, stride / 2, to + column * depth + k * kPanel, kPanel);
      }
    }
  }

  static void pack_rows(const Element* from, ptrdiff_t stride, int rows, int columns, Element* to) {
    for (int column = 0; column < columns; column += kPanel) {
      for (int row = 0; row < rows; row += 2) {
        const __m512i even = widened(from + row * stride + column);
        const __m512i odd = widened(from + (row + 1) * stride + column);
        _mm512_storeu_si512(to + column * rows + row * kPanel,
                            _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
      }
    }
  }

  // The same from a tensor whose rows lie `stride` numbers apart
  static void pack_tensor_rows(const void* from, int32_t, ptrdiff_t stride, int rows, int columns,
                               Element* to) {
    pack_rows(static_cast<const Element*>(from), stride, rows, columns, to);
  }

 private:
  static __m512i widened(const Element* from) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
};

}  // namespace trisparse::TRISPARSE_SET
