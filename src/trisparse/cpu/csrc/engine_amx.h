// Products of bfloat16 with float sums in AMX tiles.
//
// A tile register holds 16 rows of 64 bytes. The right operand wants pairs of depths side by side: row p of a
// tile is (x[2p][c], x[2p + 1][c]) for its 16 columns c, so a panel is a row of such tiles, 32 depths each.
#pragma once
#include "amx_tiles.h"
#include "matrices.h"
#include "number.h"
#include "transpose.h"
#include "vector.h"

namespace trisparse::TRISPARSE_SET {

class AmxEngine {
 public:
  using Element = uint16_t;  // the bits of a bfloat16
  static constexpr bool kRounds = true;
  // that a product must have to run at full rate
  static constexpr int kFewPanels = 1;

  using Session = TileSession;

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

  static void multiply(const Matrices<Element>& m) {
    if (m.tiles == 2) {
      int panel = 0;
      for (; panel + 2 <= m.panels; panel += 2) block<2, 2>(m, panel);
      if (panel < m.panels) block<2, 1>(m, panel);
    } else {
      int panel = 0;
      for (; panel + 4 <= m.panels; panel += 4) block<1, 4>(m, panel);
      for (; panel < m.panels; ++panel) block<1, 1>(m, panel);
    }
  }

 private:
  static __m512i widened(const Element* from) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }

  // registers: sums 0-3, left operands 4-5, right operands 6-7
  template <int tiles, int panels>
  static void block(const Matrices<Element>& m, int panel) {
    tiles_touch_memory();
    begin_sums<tiles, panels, 0>(m, panel);
    const Element* left[2] = {m.left[0], m.left[tiles - 1]};
    const Element* right = m.right + panel * m.panel_stride;
    for (int run = 0; run < m.runs; ++run) {
      for (int k = 0; k < m.depth; k += kDepthUnit) {
        load_tile<4>(left[0] + k, m.left_stride * 2);
        if constexpr (tiles == 2) load_tile<5>(left[1] + k, m.left_stride * 2);
        add_panels<tiles, panels, 0>(right + k * kPanel, m.panel_stride);
      }
      left[0] += m.left_run;
      left[1] += m.left_run;
      right += m.right_run;
    }
    end_sums<tiles, panels, 0>(m, panel);
    tiles_touch_memory();
  }

  template <int tiles, int panels, int index>
  static void add_panels(const Element* right, ptrdiff_t panel_stride) {
    if constexpr (index < panels) {
      constexpr int factor = 6 + index % 2;
      load_tile<factor>(right + index * panel_stride, 64);
      multiply_tiles<index, 4, factor>();
      if constexpr (tiles == 2) multiply_tiles<panels + index, 5, factor>();
      add_panels<tiles, panels, index + 1>(right, panel_stride);
    }
  }

  template <int tiles, int panels, int index>
  static float* sum_place(const Matrices<Element>& m, int panel) {
    return m.out[index / panels] + (panel + index % panels) * kPanel;
  }

  template <int tiles, int panels, int index>
  static void begin_sums(const Matrices<Element>& m, int panel) {
    if constexpr (index < tiles * panels) {
      if (m.add) {
        load_tile<index>(sum_place<tiles, panels, index>(m, panel), m.out_stride * 4);
      } else {
        zero_tile<index>();
      }
      begin_sums<tiles, panels, index + 1>(m, panel);
    }
  }

  template <int tiles, int panels, int index>
  static void end_sums(const Matrices<Element>& m, int panel) {
    if constexpr (index < tiles * panels) {
      store_tile<index>(sum_place<tiles, panels, index>(m, panel), m.out_stride * 4);
      end_sums<tiles, panels, index + 1>(m, panel);
    }
  }
};

// what the passes are compiled with
using SetEngine = AmxEngine;

}  // namespace trisparse::TRISPARSE_SET
