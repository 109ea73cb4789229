// Products in vector registers: a block of rows by panels, whose sums stay there over all depths.
#pragma once
#include "matrices.h"
#include "vector.h"

namespace trisparse::TRISPARSE_SET {

// `Step`: `Element` and `Factors`; `kDepths` that one step takes; `factors(place)` of kLanes columns and
// `splat(place)` of a row at those depths; `add(sums, row, columns)`.
template <class Step>
class RegisterBlocks {
 public:
  using Element = typename Step::Element;
  // that a product must have to run at full rate
  static constexpr int kFewPanels = kLanes == 16 ? 2 : 1;

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
  static constexpr int kVectors = kPanel / kLanes;
  // sums that fit the registers: 32 of them with AVX-512, else 16
  static constexpr int kRows = kLanes == 16 ? 8 : 4;

  template <int panels>
  static void strip(const Matrices<Element>& m, int tile, int panel) {
    for (int row = 0; row < kTileRows; row += kRows) block<panels>(m, tile, panel, row);
  }

  template <int panels>
  static void block(const Matrices<Element>& m, int tile, int panel, int first_row) {
    constexpr int columns = panels * kVectors;
    float* out = m.out[tile] + first_row * m.out_stride + panel * kPanel;
    const Element* left = m.left[tile] + first_row * m.left_stride;
    const Element* right = m.right + panel * m.panel_stride;
    Floats sums[kRows][columns];
    for (int row = 0; row < kRows; ++row) {
      for (int v = 0; v < columns; ++v) {
        sums[row][v] = Floats{};
      }
    }
    for (int run = 0; run < m.runs; ++run) {
      for (int k = 0; k < m.depth; k += Step::kDepths) {
        typename Step::Factors factors[columns];
#pragma GCC unroll 8
        for (int v = 0; v < columns; ++v) {
          const Element* panel_of_v = right + (v / kVectors) * m.panel_stride;
          factors[v] = Step::factors(panel_of_v + k * kPanel + v % kVectors * kLanes);
        }
#pragma GCC unroll 8
        for (int row = 0; row < kRows; ++row) {
          const typename Step::Factors number = Step::splat(left + row * m.left_stride + k);
#pragma GCC unroll 8
          for (int v = 0; v < columns; ++v) sums[row][v] = Step::add(sums[row][v], number, factors[v]);
        }
      }
      left += m.left_run;
      right += m.right_run;
    }
    for (int row = 0; row < kRows; ++row) {
      for (int v = 0; v < columns; ++v) {
        float* place = out + row * m.out_stride + v * kLanes;
        // added at the end: sums of sums round less than one long chain
        store(place, m.add ? load(place) + sums[row][v] : sums[row][v]);
      }
    }
  }
};

}  // namespace trisparse::TRISPARSE_SET
