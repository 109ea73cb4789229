// Attention of neighbouring rows over a run of neighbouring tiles: the compressed and the window branch.
//
// Two phases per group of tiles: first all scores and probabilities, then one long product with the values,
// whose sums stay in registers from tile to tile. The scores of a tile are on their way while the
// exponentials of the one before are taken: the processor overlaps the two, they use different units.
#pragma once
#include "pack.h"
#include "scores.h"
#include "softmax.h"
#include "walk.h"

namespace trisparse::TRISPARSE_SET {

template <class Engine>
struct RunScratch {
  using Element = typename Engine::Element;
  Buffer<float> scores{2 * kPairRows * kTileKeys};
  Buffer<Element> probabilities{kPairRows * kGroupTiles * kTileKeys};
};

// One group of tiles for rows [first, end) of a chunk, at most 32. `Hooks` sees each tile's probabilities,
// on_row(tile, row, p), and each change of a row's reference, on_raise(tile, row, factor).
template <class Engine, bool precise, class Hooks>
class RunGroup {
 public:
  using Element = typename Engine::Element;

  RunGroup(const Shape& shape, const SoftmaxRows& state, const Element* query, int64_t first, int64_t end,
           const RunScratch<Engine>& scratch, Hooks& hooks)
      : shape_(shape), state_(state), scratch_(scratch), hooks_(hooks), first_(first) {
    tiles_ = end - first > kTileRows ? 2 : 1;
    for (int tile = 0; tile < tiles_; ++tile) {
      rows_[tile] = TileRows::from(first + tile * kTileRows, end);
      left_[tile] = query + (first + tile * kTileRows) * shape.head_depth;
    }
  }

  // `columns(tile)` says which keys, `masked(tile)` whether some row cannot see all of them
  template <class ColumnsOf, class MaskedOf>
  void attend(const PackedBranch<Engine>& packed, int64_t packed_base, Range range, bool with_values,
              ColumnsOf columns, MaskedOf masked) {
    const int count = int(range.end - range.begin);
    if (count <= 0) return;
    score(packed.key_columns.tile(packed_base + range.begin), 0);
    for (int index = 0; index < count; ++index) {
      const int64_t tile = range.begin + index;
      if (index + 1 < count) score(packed.key_columns.tile(packed_base + tile + 1), index + 1);
      for (int half = 0; half < tiles_; ++half) {
        if (masked(tile)) {
          probabilities<true>(half, index, tile, columns(tile));
        } else {
          probabilities<false>(half, index, tile, columns(tile));
        }
      }
    }
    if (!with_values) return;
    const Element* left[2] = {place(0, 0), place(1, 0)};
    float* out[2] = {sums(0), sums(1)};
    add_product<Engine>(tiles_, left, packed.value_depth.tile(packed_base + range.begin), count,
                        shape_.value_depth, out);
  }

 private:
  // a tile's probabilities lie together, [16][64]: rows far apart would meet in few sets of the first-level
  // cache
  Element* place(int half, int index) const {
    return scratch_.probabilities.get() + (half * kGroupTiles + index) * kTileRows * kTileKeys;
  }

  float* sums(int half) const { return state_.sums + (first_ + half * kTileRows) * state_.sums_stride; }

  float* scores(int index) const { return scratch_.scores.get() + index % 2 * kPairRows * kTileKeys; }

  void score(const Element* keys, int index) const {
    tile_scores<Engine>(tiles_, left_, shape_.head_depth, keys, scores(index));
  }

  template <bool masked>
  void probabilities(int half, int index, int64_t tile, Columns columns) {
    exponentiate<Engine, precise, masked>(
        scores(index) + half * kTileRows * kTileKeys, rows_[half], columns, shape_, state_,
        place(half, index),
        [&](int i, int64_t row, float factor) {
          state_.rescale(row, factor);
          for (int before = 0; before < index; ++before)
            rescale_elements(place(half, before) + i * kTileKeys, factor);
          hooks_.on_raise(tile, row, factor);
        },
        [&](int i, const Floats* p) { hooks_.on_row(tile, rows_[half].index[i], p); });
  }

  // by a power of two: exact
  [[gnu::noinline, gnu::cold]] static void rescale_elements(Element* elements, float factor) {
    float line[kTileKeys];
    Floats scaled[kTileVectors];
    for (int i = 0; i < kTileKeys; ++i) line[i] = Engine::element_to_float(elements[i]) * factor;
    for (int v = 0; v < kTileVectors; ++v) scaled[v] = load(line + v * kLanes);
    Engine::store_elements(elements, scaled, kTileVectors);
  }

  const Shape& shape_;
  const SoftmaxRows& state_;
  const RunScratch<Engine>& scratch_;
  Hooks& hooks_;
  int64_t first_;
  int tiles_;
  TileRows rows_[2];
  const Element* left_[2];
};

struct NoHooks {
  void on_row(int64_t, int64_t, const Floats*) {}
  void on_raise(int64_t, int64_t, float) {}
};

}  // namespace trisparse::TRISPARSE_SET
