// The selected branch of a chunk, block by block: a block's keys and values are read once for all rows of the
// chunk that chose it (shared fetching), and tiles are full whatever the number of heads per group.
#pragma once
#include "chunk.h"
#include "gather.h"
#include "pairs.h"
#include "scores.h"
#include "visibility.h"

namespace trisparse::TRISPARSE_SET {

// Calls function(block, tiles, rows[2], masked) for every pair of row tiles of every chosen block, blocks
// ascending
template <class Function>
inline void for_each_tile_pair(const std::vector<Pair>& pairs, const ChunkRows& rows, int64_t select_block,
                               Function function) {
  const int heads = rows.heads;
  for (size_t begin = 0; begin < pairs.size();) {
    size_t end = begin;
    while (end < pairs.size() && pairs[end].block == pairs[begin].block) ++end;
    const int64_t count = int64_t(end - begin) * heads;
    for (int64_t first = 0; first < count; first += kPairRows) {
      TileRows tiles[2];
      for (int64_t index = first; index < std::min(first + kPairRows, count); ++index) {
        TileRows& tile = tiles[(index - first) / kTileRows];
        const Pair& pair = pairs[begin + size_t(index / heads)];
        tile.index[tile.count++] = int32_t(pair.token * heads + index % heads);
      }
      // tokens ascend: the first is the one that may not see the whole block
      const int64_t position =
          rows.chunk.position(rows.sequence) + pairs[begin + size_t(first / heads)].token;
      const bool masked = position < (int64_t(pairs[begin].block) + 1) * select_block - 1;
      function(int64_t(pairs[begin].block), tiles[1].count > 0 ? 2 : 1, tiles, masked);
    }
    begin = end;
  }
}

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
    const int64_t per_block = packed.tiling.tiles_per_block();
    for_each_tile_pair(pairs_, rows, problem_.select_block,
                       [&](int64_t block, int tiles, const TileRows* tile_rows, bool masked) {
                         for (int64_t part = 0; part < per_block; ++part) {
                           const int64_t tile = block * per_block + part;
                           const Span span = packed.tiling.span(tile, rows.sequence.tokens);
                           if (span.count <= 0) continue;
                           step(shape, packed, base + tile, span, tiles, tile_rows,
                                masked || span.count < kTileKeys, query, state);
                         }
                       });
  }

 private:
  void step(const Shape& shape, const PackedBranch<Engine>& packed, int64_t tile, const Span& span, int tiles,
            const TileRows* rows, bool masked, const Element* query, const SoftmaxRows& state) {
    const Element* left[2];
    for (int half = 0; half < tiles; ++half)
      left[half] = gatherer_.left(rows[half], query, shape.head_depth, half);
    tile_scores<Engine>(tiles, left, shape.head_depth, packed.key_columns.tile(tile), scores_.get());
    for (int half = 0; half < tiles; ++half) {
      if (masked) {
        probabilities<true>(shape, half, rows[half], span, state);
      } else {
        probabilities<false>(shape, half, rows[half], span, state);
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
  void probabilities(const Shape& shape, int half, const TileRows& rows, const Span& span,
                     const SoftmaxRows& state) {
    // columns past the block or the last token hold no key: give them positions in everybody's future
    const Columns columns{span.count < kTileKeys ? short_columns_.of(span.count) : span.key, span.first};
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
  ShortColumns short_columns_;
};

}  // namespace trisparse::TRISPARSE_SET
