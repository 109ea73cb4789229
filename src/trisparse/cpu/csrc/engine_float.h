// Products in float with the compilers' vectors: every machine, every data type.
#pragma once
#include "matrices.h"
#include "number.h"
#include "register_blocks.h"
#include "transpose.h"
#include "vector.h"

namespace trisparse::TRISPARSE_SET {

struct FloatStep {
  using Element = float;
  using Factors = Floats;
  static constexpr int kDepths = 1;

  static Factors factors(const Element* from) { return load(from); }
  static Factors splat(const Element* from) { return trisparse::TRISPARSE_SET::splat(*from); }
  static Floats add(Floats sums, Factors row, Factors columns) { return sums + row * columns; }
};

class FloatEngine : public RegisterBlocks<FloatStep> {
 public:
  static constexpr bool kRounds = false;  // does packing round an operand that was computed in float?

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
};

// what the passes are compiled with
using SetEngine = FloatEngine;

}  // namespace trisparse::TRISPARSE_SET
