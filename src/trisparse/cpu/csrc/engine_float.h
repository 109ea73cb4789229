// Products in float with the compilers' vectors: every machine, every data type.
#pragma once
#include "matrices.h"
#include "number.h"
#include "transpose.h"
#include "vector.h"

namespace trisparse::TRISPARSE_SET {

class FloatEngine {
 public:
  using Element = float;
  static constexpr bool kRounds = false;  // does packing round an operand that was computed in float?
  // that a product must have to run at full rate
  static constexpr int kFewPanels = kLanes == 16 ? 2 : 1;

  class Session {};  // nothing to set up per thread

  static void store_elements(Element* to, const Floats* from, int vectors) {
    for (int index = 0; index < vectors; ++index) store(to + index * kLanes, from[index]);
  }

  // as `store_elements` rounds
  static Floats rounded(Floats x) { return x; }

  // May rows of a tensor serve as operands where they lie?
  static bool in_place(int32_t type) { return type == kFloat32; }

  static float element_to_float(Element element) { return element; }

  static void stage(const void* from, int32_t type, int64_t count, Element* to) {
    read_numbers(from, type, count, to);
  }

  // Right operand of depth `depth` whose columns are the rows of `from`
  static void pack_columns(const Element* from, ptrdiff_t stride, int columns, int depth, Element* to) {
    for (int column = 0; column < columns; column += kPanel) {
      for (int k = 0; k < depth; k += kSquare) {
        transpose_square(from + column * stride + k, stride, to + column * depth + k * kPanel, kPanel);
      }
    }
  }

  // Right operand whose depth are the rows of `from`
  static void pack_rows(const Element* from, ptrdiff_t stride, int rows, int columns, Element* to) {
    for (int column = 0; column < columns; column += kPanel) {
      for (int row = 0; row < rows; ++row) {
        std::memcpy(to + column * rows + row * kPanel, from + row * stride + column, kPanel * sizeof(float));
      }
    }
  }

  // The same from a tensor whose rows lie `stride` numbers apart
  static void pack_tensor_rows(const void* from, int32_t type, ptrdiff_t stride, int rows, int columns,
                               Element* to) {
    for (int column = 0; column < columns; column += kPanel) {
      const char* place = static_cast<const char*>(from) + column * size_of(type);
      read_columns<kPanel>(place, type, stride, rows, to + column * rows);
    }
  }

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
    const float* left = m.left[tile] + first_row * m.left_stride;
    const float* right = m.right + panel * m.panel_stride;
    Floats sums[kRows][columns];
    for (int row = 0; row < kRows; ++row) {
      for (int v = 0; v < columns; ++v) {
        sums[row][v] = Floats{};
      }
    }
    for (int run = 0; run < m.runs; ++run) {
      for (int k = 0; k < m.depth; ++k) {
        Floats factors[columns];
#pragma GCC unroll 8
        for (int v = 0; v < columns; ++v) {
          factors[v] = load(right + (v / kVectors) * m.panel_stride + k * kPanel + v % kVectors * kLanes);
        }
#pragma GCC unroll 8
        for (int row = 0; row < kRows; ++row) {
          const Floats number = splat(left[row * m.left_stride + k]);
#pragma GCC unroll 8
          for (int v = 0; v < columns; ++v) sums[row][v] += number * factors[v];
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

// what the passes are compiled with
using SetEngine = FloatEngine;

}  // namespace trisparse::TRISPARSE_SET
