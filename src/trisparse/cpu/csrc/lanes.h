// The running softmax of few rows over many keys: rows lie side by side in the lanes of vectors, so that a
// maximum or a sum over keys is a chain of vectors, and nothing is ever summed across lanes.
//
// The rules are those of softmax.h: probabilities are relative to a reference, the highest score of the first
// tile in which a row sees a key, and raised only where a score passes it by kHeadroom powers of two.
#pragma once
#include "key_tile.h"
#include "softmax.h"

namespace trisparse::TRISPARSE_SET {

// State of the rows of a chunk: row r is column r, columns past the last row are nobody's
struct LaneRows {
  int columns;       // whole panels
  int64_t features;  // padded
  float* reference;  // [columns]; -inf: no finite score yet
  float* total;      // [columns]
  float* sums;       // [columns][features]

  static int64_t size(int columns, int64_t features) { return columns * (2 + features); }

  static LaneRows in(float* memory, int columns, int64_t features) {
    return {columns, features, memory, memory + columns, memory + 2 * columns};
  }

  void reset() const {
    std::fill(reference, reference + columns, -kInfinity);
    std::fill(total, total + columns * (1 + features), 0.0f);
  }

  // sums of kLanes rows from `column` on
  void rescale(int column, Floats factor) const {
    for (int lane = 0; lane < kLanes; ++lane) {
      float* row = sums + (column + lane) * features;
      for (int64_t feature = 0; feature < features; ++feature) row[feature] *= factor[lane];
    }
  }
};

// Keys low <= key < high, by columns
struct LaneLimits {
  const int32_t* low;
  const int32_t* high;
};

// One vector of columns and a tile of 64 keys
template <class Engine, bool precise, bool masked>
class LaneTile {
 public:
  // `dots`: scores [64][stride], from this vector's column on
  LaneTile(const float* dots, int64_t stride, const KeyTile& tile, const LaneLimits& limits, int column,
           const Exponent<Engine>& exponent)
      : dots_(dots),
        stride_(stride),
        tile_(tile),
        low_(load_as<Ints>(limits.low + column)),
        high_(load_as<Ints>(limits.high + column)),
        exponent_(exponent) {}

  // Makes the reference fit the tile's scores. `on_raise(factor)` must rescale what was made with the former
  // one; the total is rescaled here.
  template <class OnRaise>
  void settle(float* reference, float* total, OnRaise on_raise) const {
    Floats best = splat(-kInfinity);
    for (int key = 0; key < kTileKeys; ++key) {
      const Floats score = visible(key, exponent_.score(load(dots_ + key * stride_)));
      best = select(score > best, score, best);
    }
    Floats settled = load(reference);
    settled = select(settled == splat(-kInfinity), best, settled);
    const Floats excess = Exponent<Engine>::difference(best - settled);
    if (__builtin_expect(any_above(excess, kHeadroom), 0)) {
      Floats factor = splat(1.0f);
      for (int lane = 0; lane < kLanes; ++lane) {
        if (!(excess[lane] > kHeadroom)) continue;
        const auto raised = Exponent<Engine>::raise(settled[lane], best[lane]);
        settled[lane] = raised.reference;
        factor[lane] = raised.factor;
      }
      store(total, load(total) * factor);
      on_raise(factor);
    }
    store(reference, settled);
  }

  // Probabilities [64][16], added to the total; `on_key()` is called once for each key
  template <class OnKey>
  void exponentiate(const float* reference, float* total, float* probabilities, OnKey on_key) const {
    const Floats settled = load(reference);
    // no finite score yet: any reference will do
    const Floats offset = select(settled == splat(-kInfinity), Floats{}, settled);
    const Ints coarse = Exponent<Engine>::is_coarse(offset);
    const bool any_coarse = Engine::kRounds && any_above(select(coarse, splat(1.0f), Floats{}), 0.0f);
    Floats sum = load(total);
    for (int key = 0; key < kTileKeys; ++key) {
      const Floats dots = load(dots_ + key * stride_);
      Floats x = exponent_(dots, offset);
      if (__builtin_expect(any_coarse, 0)) x = select(coarse, exponent_.rounded_difference(dots, offset), x);
      const Floats p = exp2<precise>(visible(key, x));
      store(probabilities + key * kPanel, p);
      // else what the values will be weighed with, so that the weights sum to 1
      on_key();
      sum += precise ? p : Engine::rounded(p);
    }
    store(total, sum);
  }

 private:
  Floats visible(int key, Floats x) const {
    if constexpr (!masked) return x;
    const Ints position = splat(tile_.key[key]);
    return select((position >= low_) & (position < high_), x, splat(-kInfinity));
  }

  const float* dots_;
  int64_t stride_;
  const KeyTile& tile_;
  Ints low_, high_;
  const Exponent<Engine>& exponent_;
};

}  // namespace trisparse::TRISPARSE_SET
