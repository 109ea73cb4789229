// AmxEngine without AMX: the same roundings and operands of bfloat16 by the compilers' vectors, so that all that
// is built on that engine runs on any processor. Slow.
#pragma once
#include "matrices.h"
#include "number.h"
#include "transpose.h"
#include "vector.h"

namespace trisparse::TRISPARSE_SET {

class EmulatedEngine {
 public:
  using Element = uint16_t;  // the bits of a bfloat16
  static constexpr bool kRounds = true;
  static constexpr int kFewPanels = 1;

  class Session {};

  static void store_elements(Element* to, const Floats* from, int vectors) {
    for (int index = 0; index < vectors * kLanes; ++index) {
      to[index] = bits_of(from[index / kLanes][index % kLanes]);
    }
  }

  static Floats add_elements(const Element* from, int vectors, Floats total) {
    for (int index = 0; index < vectors * kLanes; ++index) {
      total[index / 2 % kLanes] += element_to_float(from[index]);
    }
    return total;
  }

  static Floats rounded(Floats x) {
    for (int lane = 0; lane < kLanes; ++lane) x[lane] = element_to_float(bits_of(x[lane]));
    return x;
  }

  static bool in_place(int32_t) { return true; }

  static float element_to_float(Element element) { return to_float(BFloat16{element}); }

  static void stage(const void* from, int32_t, int64_t count, Element* to) {
    std::memcpy(to, from, 2 * size_t(count));
  }

  // a panel is [depth / 2][16][2]
  static void pack_columns(const Element* from, ptrdiff_t stride, int columns, int depth, Element* to) {
    for (int column = 0; column < columns; ++column) {
      for (int k = 0; k < depth; ++k) *place(to, depth, column, k) = from[column * stride + k];
    }
  }

  static void pack_rows(const Element* from, ptrdiff_t stride, int rows, int columns, Element* to) {
    for (int column = 0; column < columns; ++column) {
      for (int row = 0; row < rows; ++row) *place(to, rows, column, row) = from[row * stride + column];
    }
  }

  static void pack_tensor_rows(const void* from, int32_t, ptrdiff_t stride, int rows, int columns,
                               Element* to) {
    pack_rows(static_cast<const Element*>(from), stride, rows, columns, to);
  }

  static void multiply(const Matrices<Element>& m) {
    for (int tile = 0; tile < m.tiles; ++tile) {
      for (int panel = 0; panel < m.panels; ++panel) {
        for (int row = 0; row < kTileRows; ++row) one_row(m, tile, panel, row);
      }
    }
  }

 private:
  static Element bits_of(float number) {
    BFloat16 rounded;
    from_float(number, rounded);
    return rounded.bits;
  }

  static Element* place(Element* to, int depth, int column, int k) {
    return to + int64_t(column / kPanel) * kPanel * depth + k / 2 * 2 * kPanel + column % kPanel * 2 + k % 2;
  }

  // sums begin with what is there, as in tile registers
  static void one_row(const Matrices<Element>& m, int tile, int panel, int row) {
    float* out = m.out[tile] + row * m.out_stride + panel * kPanel;
    float sums[kPanel] = {};
    if (m.add) std::memcpy(sums, out, sizeof sums);
    for (int run = 0; run < m.runs; ++run) {
      const Element* left = m.left[tile] + run * m.left_run + row * m.left_stride;
      const Element* right = m.right + panel * m.panel_stride + run * m.right_run;
      for (int k = 0; k < m.depth; k += 2) {
        const float first = element_to_float(left[k]), second = element_to_float(left[k + 1]);
        for (int column = 0; column < kPanel; ++column) {
          const Element* pair = right + k * kPanel + 2 * column;
          sums[column] += first * element_to_float(pair[0]) + second * element_to_float(pair[1]);
        }
      }
    }
    std::memcpy(out, sums, sizeof sums);
  }
};

// what the passes are compiled with
using SetEngine = EmulatedEngine;

}  // namespace trisparse::TRISPARSE_SET
