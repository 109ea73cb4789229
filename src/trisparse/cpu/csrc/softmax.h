// The running softmax of many rows, one tile of 64 keys after the other.
//
// A row's probabilities are taken relative to a reference, the highest score of the first tile in which it
// sees a key. It is raised only when a score passes it by kHeadroom powers of two, so that almost no tile
// rescales anything, and when it is, then by a power of two, which changes no digit, or, where floats are too
// coarse for that, to the highest score itself. Nothing can overflow, whatever the logits; NaN stays NaN in
// its row.
#pragma once
#include <algorithm>
#include <cmath>

#include "matrices.h"
#include "sequence.h"
#include "vector.h"

namespace trisparse::TRISPARSE_SET {

constexpr float kHeadroom = 8.0f;
constexpr int kTileVectors = kTileKeys / kLanes;

// State of the rows of a chunk
struct SoftmaxRows {
  float* reference;  // [rows], in the engine's units (see Exponent); -inf: no finite score yet
  float* total;      // [rows][kLanes], sums of probabilities by lane
  float* sums;       // [rows][sums_stride], sums of probability times value
  int64_t sums_stride;
  const int32_t* low;  // [rows]: keys low <= key < high are visible
  const int32_t* high;

  void reset(int64_t rows) const {
    std::fill(reference, reference + rows, -kInfinity);
    std::fill(total, total + rows * kLanes, 0.0f);
    std::fill(sums, sums + rows * sums_stride, 0.0f);
  }

  // rare, but called in many places
  [[gnu::noinline, gnu::cold]] void rescale(int64_t row, float factor) const {
    for (int lane = 0; lane < kLanes; ++lane) total[row * kLanes + lane] *= factor;
    for (int64_t index = 0; index < sums_stride; ++index) sums[row * sums_stride + index] *= factor;
  }
};

// The rows of a tile, as indices into a chunk's rows
struct TileRows {
  int count = 0;
  int32_t index[kTileRows];

  static TileRows from(int64_t first, int64_t end) {
    TileRows rows;
    rows.count = int(std::min<int64_t>(kTileRows, std::max<int64_t>(0, end - first)));
    for (int i = 0; i < rows.count; ++i) rows.index[i] = int32_t(first + i);
    return rows;
  }
};

// Where the 64 columns of a tile stand among the keys: column c is key `key[c] + shift`
struct Columns {
  const int32_t* key;
  int64_t shift;
};

// From dot products to exponents of 2. An engine that rounds to bfloat16 anyway keeps references and
// log-sum-exps in units of log2 and needs one instruction. The other works with the rounded score as the
// specification does: what it subtracts later is then exactly what it added, and a row that sees one key has
// probability 1, not almost.
template <class Engine>
struct Exponent {
  // A row's next reference, and what was made with the one before is multiplied by
  struct Raise {
    float reference, factor;
  };

  explicit Exponent(const Shape& shape) : factor(splat(Engine::kRounds ? shape.multiplier : shape.scale)) {}

  // in the engine's units
  Floats score(Floats dots) const { return rounded(dots * factor); }

  Floats operator()(Floats dots, Floats reference) const {
    if constexpr (Engine::kRounds) {
      return dots * factor - reference;
    } else {
      return (score(dots) - reference) * kLog2E;
    }
  }

  // Are floats near `reference` so coarse that a product which was not rounded may be whole powers of two
  // away from the same product rounded? Not if it is infinite: all exponents are then -inf.
  static bool is_coarse(float reference) {
    return Engine::kRounds && std::abs(reference) >= kCoarse && std::abs(reference) < kInfinity;
  }
  static Ints is_coarse(Floats reference) {
    const Floats size = reference < 0.0f ? -reference : reference;
    return Engine::kRounds ? (size >= kCoarse) & (size < kInfinity) : Ints{};
  }

  // the same as operator(), for a coarse reference
  Floats rounded_difference(Floats dots, Floats reference) const { return score(dots) - reference; }

  // the same for a log-sum-exp, coarse or not: no probability is above 1, however much was lost of its sum
  Floats of_probability(Floats dots, Floats log_sum_exp) const {
    const Floats coarse = not_above_zero(rounded_difference(dots, log_sum_exp));
    return select(is_coarse(log_sum_exp), coarse, (*this)(dots, log_sum_exp));
  }
  static Floats not_above_zero(Floats x) { return x > 0.0f ? Floats{} : x; }

  // `reference` raised for a score `best` that is too far above it: by a power of two, unless so little is
  // left of what there was that its digits do not count, or the sum was rounded
  [[gnu::noinline, gnu::cold]] static Raise raise(float reference, float best) {
    const float step = std::ceil(difference(best - reference)), sum = reference + power(step);
    const bool near = step <= kFar && std::abs(difference(sum - reference) - step) <= kSlack;
    return near ? Raise{sum, std::exp2(-step)} : Raise{best, std::exp2(-difference(best - reference))};
  }

  // natural logarithms to the engine's units and back
  static float from_natural(float number) {
    return Engine::kRounds ? float(double(number) * kLog2E) : number;
  }
  static float log_sum_exp(float reference, float total) {
    return Engine::kRounds ? (reference + std::log2(total)) * kLn2 : reference + std::log(total);
  }
  // a difference of two scores as a power of 2
  template <class Number>
  static Number difference(Number scores) {
    return Engine::kRounds ? scores : scores * kLog2E;
  }
  static float power(float exponent) { return Engine::kRounds ? exponent : exponent * kLn2; }

  static constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
  static constexpr float kCoarse = 0x1p24f;  // from here on floats are whole numbers
  static constexpr float kFar = 64.0f, kSlack = 0x1p-16f;
  Floats factor;

 private:
  // keeps the compiler from fusing the product into the subtraction
  static Floats rounded(Floats product) {
#if defined(__x86_64__)
    asm("" : "+x"(product));
#elif defined(__aarch64__)
    asm("" : "+w"(product));
#endif
    return product;
  }
};

// Hidden keys of one row become -inf
template <bool masked>
inline void hide(const Columns& columns, int64_t low, int64_t high, Floats* x) {
  if constexpr (masked) {
    const auto bound = [&](int64_t limit) {
      return splat(int32_t(std::clamp<int64_t>(limit - columns.shift, INT32_MIN, INT32_MAX)));
    };
    const Ints lowest = bound(low), end = bound(high);
    for (int v = 0; v < kTileVectors; ++v) {
      const Ints key = load_as<Ints>(columns.key + v * kLanes);
      x[v] = select((key >= lowest) & (key < end), x[v], splat(-kInfinity));
    }
  }
}

inline Floats maximum_of(const Floats* x) {
  Floats top = x[0];
  for (int v = 1; v < kTileVectors; ++v) top = maximum(top, x[v]);
  return top;
}

// One row's exponents relative to its reference
template <class Engine, bool masked>
inline void exponents(const float* dots, const Exponent<Engine>& exponent, float reference,
                      const Columns& columns, int64_t low, int64_t high, Floats* x) {
  const Floats offset = splat(reference);
  if (__builtin_expect(Exponent<Engine>::is_coarse(reference), 0)) {
    for (int v = 0; v < kTileVectors; ++v)
      x[v] = exponent.rounded_difference(load(dots + v * kLanes), offset);
  } else {
    for (int v = 0; v < kTileVectors; ++v) x[v] = exponent(load(dots + v * kLanes), offset);
  }
  hide<masked>(columns, low, high, x);
}

// A row's highest score in a tile, in the engine's units; -inf if it sees none. Not inline: called once per
// row, in many places.
template <class Engine, bool masked>
[[gnu::noinline]] inline float highest_score(const float* dots, const Exponent<Engine>& exponent,
                                             const Columns& columns, int64_t low, int64_t high) {
  Floats x[kTileVectors];
  for (int v = 0; v < kTileVectors; ++v) x[v] = exponent.score(load(dots + v * kLanes));
  hide<masked>(columns, low, high, x);
  float best = -kInfinity;
  for (int v = 0; v < kTileVectors; ++v) best = std::max(best, highest(x[v]));
  return best;
}

// Scores [16][64] of some rows -> probabilities [16][64], added to the rows' totals. `on_raise(i, row,
// factor)` must rescale whatever else was made with row's former reference; `on_row(i, p)` sees the
// probabilities before they are rounded.
template <class Engine, bool precise, bool masked, class OnRaise, class OnRow>
inline void exponentiate(const float* dots, const TileRows& rows, const Columns& columns, const Shape& shape,
                         const SoftmaxRows& state, typename Engine::Element* probabilities, OnRaise on_raise,
                         OnRow on_row) {
  const Exponent<Engine> exponent(shape);
  for (int i = 0; i < rows.count; ++i) {
    const int64_t row = rows.index[i];
    const int64_t low = masked ? state.low[row] : 0, high = masked ? state.high[row] : 0;
    const float* line = dots + i * kTileKeys;
    float reference = state.reference[row];
    if (__builtin_expect(reference == -kInfinity, 0)) {
      reference = state.reference[row] = highest_score<Engine, masked>(line, exponent, columns, low, high);
      // no finite score yet: any reference will do
      if (reference == -kInfinity) reference = 0.0f;
    }
    Floats x[kTileVectors];
    exponents<Engine, masked>(line, exponent, reference, columns, low, high, x);
    if (__builtin_expect(any_above(maximum_of(x), kHeadroom), 0)) {
      const float best = highest_score<Engine, masked>(line, exponent, columns, low, high);
      const auto raised = Exponent<Engine>::raise(reference, best);
      state.reference[row] = raised.reference;
      on_raise(i, row, raised.factor);
      exponents<Engine, masked>(line, exponent, state.reference[row], columns, low, high, x);
    }
    for (int v = 0; v < kTileVectors; ++v) x[v] = exp2<precise>(x[v]);
    on_row(i, x);
    typename Engine::Element* to = probabilities + i * kTileKeys;
    Engine::store_elements(to, x, kTileVectors);
    Floats total = load(state.total + row * kLanes);
    if constexpr (precise) {
      for (int v = 0; v < kTileVectors; ++v) total += x[v];
    } else {
      // what the values will be weighed with, so that the weights sum to 1
      total = Engine::add_elements(to, kTileVectors, total);
    }
    store(state.total + row * kLanes, total);
  }
}

}  // namespace trisparse::TRISPARSE_SET
