// Products of bfloat16 with float sums in AMX tiles: registers of 16 rows of 64 bytes. A panel is a row of such
// tiles, 32 depths each.
#pragma once
#include "amx_tiles.h"
#include "bfloat16_operands.h"

namespace trisparse::TRISPARSE_SET {

class AmxEngine : public BFloat16Operands {
 public:
  // that a product must have to run at full rate
  static constexpr int kFewPanels = 1;

  using Session = TileSession;

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
