// Products of bfloat16 with float sums by the dot products of AVX-512: each adds a pair of products to 16 sums.
#pragma once
#include "bfloat16_operands.h"

namespace trisparse::TRISPARSE_SET {

class BFloat16Engine : public BFloat16Operands {
 public:
  // that a product must have to run at full rate
  static constexpr int kFewPanels = 2;

  class Session {};  // nothing to set up per thread

  // not inline: compiling takes less time, and running no more
  [[gnu::noinline]] static void multiply(const Matrices<Element>& m) {
    int panel = 0;
    for (; panel + kFewPanels <= m.panels; panel += kFewPanels) {
      for (int tile = 0; tile < m.tiles; ++tile) strip<kFewPanels>(m, tile, panel);
    }
    for (; panel < m.panels; ++panel) {
      for (int tile = 0; tile < m.tiles; ++tile) strip<1>(m, tile, panel);
    }
  }

 private:
  static constexpr int kRows = 8;  // whose sums, of two panels, fit the registers

  template <int panels>
  static void strip(const Matrices<Element>& m, int tile, int panel) {
    for (int row = 0; row < kTileRows; row += kRows) block<panels>(m, tile, panel, row);
  }

  // two numbers of a row, in all lanes
  static __m512bh splat_pair(const Element* from) {
    int32_t pair;
    std::memcpy(&pair, from, sizeof pair);
    return (__m512bh)splat(pair);
  }

  template <int panels>
  static void block(const Matrices<Element>& m, int tile, int panel, int first_row) {
    float* out = m.out[tile] + first_row * m.out_stride + panel * kPanel;
    const Element* left = m.left[tile] + first_row * m.left_stride;
    const Element* right = m.right + panel * m.panel_stride;
    Floats sums[kRows][panels];
    for (int row = 0; row < kRows; ++row) {
      for (int p = 0; p < panels; ++p) sums[row][p] = Floats{};
    }
    for (int run = 0; run < m.runs; ++run) {
      for (int k = 0; k < m.depth; k += 2) {
        __m512bh factors[panels];
#pragma GCC unroll 8
        for (int p = 0; p < panels; ++p) {
          factors[p] = (__m512bh)_mm512_loadu_si512(right + p * m.panel_stride + k * kPanel);
        }
#pragma GCC unroll 8
        for (int row = 0; row < kRows; ++row) {
          const __m512bh pair = splat_pair(left + row * m.left_stride + k);
#pragma GCC unroll 8
          for (int p = 0; p < panels; ++p) {
            sums[row][p] = (Floats)_mm512_dpbf16_ps((__m512)sums[row][p], factors[p], pair);
          }
        }
      }
      left += m.left_run;
      right += m.right_run;
    }
    for (int row = 0; row < kRows; ++row) {
      for (int p = 0; p < panels; ++p) {
        float* place = out + row * m.out_stride + p * kPanel;
        // added at the end: sums of sums round less than one long chain
        store(place, m.add ? load(place) + sums[row][p] : sums[row][p]);
      }
    }
  }
};

// what the passes are compiled with
using SetEngine = BFloat16Engine;

}  // namespace trisparse::TRISPARSE_SET
