// The selected branch of a chunk, block by block: a block's keys and values are read once for all rows of the
// chunk that chose it (shared fetching), and tiles are full whatever the number of heads per group.
#pragma once
#include "gather.h"
#include "scores.h"
#include "walk.h"

namespace trisparse::TRISPARSE_SET {

template <class Engine>
class SelectedForward {
 public:
  using Element = typename Engine::Element;
  static constexpr bool kPrecise = !Engine::kRounds;

  SelectedForward(const Problem& p, const Shape& shape)
      : problem_(p), gatherer_(std::max(shape.head_depth, shape.value_depth), shape.heads) {}

  void attend(const Shape& shape, const ChunkRows& rows, const PackedBranch<Engine>& packed,
              const Element* query, const SoftmaxRows& state) {
    const int64_t base = packed.first_tile[size_t(rows.chunk.sequence)];
    collect_pairs(problem_, rows, pairs_);
    for_each_tile_pair(pairs_, rows, problem_.select_block,
                       [&](int64_t block, int tiles, const TileRows* tile_rows, bool masked) {
                         for_each_tile_of_block(
                             packed.tiling, block, rows.sequence.tokens,
                             [&](int64_t tile, const Columns& columns, bool cut) {
                               step(shape, packed, base + tile, columns, tiles, tile_rows, masked || cut,
                                    query, state);
                             });
                       });
  }

 private:
  void step(const Shape& shape, const PackedBranch<Engine>& packed, int64_t tile, const Columns& columns,
            int tiles, const TileRows* rows, bool masked, const Element* query, const SoftmaxRows& state) {
    const Element* left[2];
    for (int half = 0; half < tiles; ++half)
      left[half] = gatherer_.left(rows[half], query, shape.head_depth, half);
    tile_scores<Engine>(tiles, left, shape.head_depth, packed.key_columns.tile(tile), scores_.get());
    for (int half = 0; half < tiles; ++half) {
      if (masked) {
        probabilities<true>(shape, half, rows[half], columns, state);
      } else {
        probabilities<false>(shape, half, rows[half], columns, state);
      }
    }
    const Element* weights[2] = {place(0), place(1)};
    float* out[2];
    for (int half = 0; half < tiles; ++half)
      out[half] = gatherer_.sums(rows[half], state.sums, state.sums_stride, half);
    add_product<Engine>(tiles, weights, packed.value_depth.tile(tile), 1, shape.value_depth, out);
    for (int half = 0; half < tiles; ++half)
      gatherer_.scatter(rows[half], state.sums, state.sums_stride, half);
  }

  template <bool masked>
  void probabilities(const Shape& shape, int half, const TileRows& rows, const Columns& columns,
                     const SoftmaxRows& state) {
    exponentiate<Engine, kPrecise, masked>(
        scores_.get() + half * kTileRows * kTileKeys, rows, columns, shape, state, place(half),
        [&](int, int64_t row, float factor) { state.rescale(row, factor); }, [](int, const Floats*) {});
  }

  Element* place(int half) const { return probabilities_.get() + half * kTileRows * kTileKeys; }

  const Problem& problem_;
  std::vector<Pair> pairs_;
  RowGatherer<Engine> gatherer_;
  Buffer<float> scores_{kPairRows * kTileKeys};
  Buffer<Element> probabilities_{kPairRows * kTileKeys};
};

}  // namespace trisparse::TRISPARSE_SET
