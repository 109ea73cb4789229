// Products of bfloat16 with float sums by the dot products of AVX-512: each adds a pair of products to 16 sums.
#pragma once
#include "bfloat16_operands.h"
#include "register_blocks.h"

namespace trisparse::TRISPARSE_SET {

struct BFloat16Step {
  using Element = BFloat16Operands::Element;
  using Factors = __m512bh;
  static constexpr int kDepths = 2;

  static Factors factors(const Element* from) { return (__m512bh)_mm512_loadu_si512(from); }

  static Factors splat(const Element* from) {
    int32_t pair;
    std::memcpy(&pair, from, sizeof pair);
    return (__m512bh)trisparse::TRISPARSE_SET::splat(pair);
  }

  static Floats add(Floats sums, Factors row, Factors columns) {
    return (Floats)_mm512_dpbf16_ps((__m512)sums, columns, row);
  }
};

class BFloat16Engine : public BFloat16Operands, public RegisterBlocks<BFloat16Step> {
 public:
  using Element = BFloat16Operands::Element;

  class Session {};  // nothing to set up per thread
};

// what the passes are compiled with
using SetEngine = BFloat16Engine;

}  // namespace trisparse::TRISPARSE_SET
