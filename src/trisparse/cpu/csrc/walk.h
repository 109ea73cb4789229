// Which tiles of keys the rows of a chunk meet, in which order: the same walks for the forward and for the
// gradient of the query.
//
// Neighbouring rows meet groups of neighbouring tiles, pair of row tiles by pair. Functions are given rows
// [first, end) of the chunk, the group, columns(tile): which keys stand in a tile, and masked(tile): whether
// some row cannot see all of them.
#pragma once
#include "chunk.h"
#include "pack.h"
#include "pairs.h"
#include "softmax.h"
#include "visibility.h"

namespace trisparse::TRISPARSE_SET {

// 256 keys: their probabilities, and the values of two panels, fit the first-level cache
constexpr int kGroupTiles = 4;

// From `tile` to the end of its group, or to `end`. Groups are counted from tile 0, not from where a chunk's
// rows begin: what is added to what must not depend on which rows go together.
inline Range group_from(int64_t tile, int64_t end) {
  return {tile, std::min((tile / kGroupTiles + 1) * kGroupTiles, end)};
}

// Compressed keys for rows [begin, end): a group of keys meets all of them while it is in the second-level
// cache. `high` are the rows' limits, which ascend.
template <class Function>
inline void for_each_compressed_group(const KeyOrder& order, const int32_t* high, int64_t begin, int64_t end,
                                      Function function) {
  const int64_t tiles = order.tiles_for(high[end - 1]);
  for (int64_t group = 0; group < tiles; group += kGroupTiles) {
    for (int64_t first = begin; first < end; first += kPairRows) {
      const int64_t last = std::min(first + kPairRows, end);
      const int64_t least = high[first];
      const int64_t group_end = std::min(group + kGroupTiles, order.tiles_for(high[last - 1]));
      if (group >= group_end) continue;
      function(
          first, last, Range{group, group_end},
          [&](int64_t tile) {
            return Columns{order.key.data() + tile * kTileKeys, 0};
          },
          [&](int64_t tile) { return order.last[size_t(tile)] >= least; });
    }
  }
}

// The window's keys for rows [0, count), whose limits ascend
template <class Function>
inline void for_each_window_group(const Tiling& tiling, const int32_t* low, const int32_t* high, int64_t count,
                                  Function function) {
  for (int64_t first = 0; first < count; first += kPairRows) {
    const int64_t end = std::min(first + kPairRows, count);
    const int64_t low_last = low[end - 1], high_first = high[first];
    const int64_t tiles_end = (high[end - 1] + kTileKeys - 1) / kTileKeys;
    for (Range range = group_from(low[first] / kTileKeys, tiles_end); range.begin < tiles_end;
         range = group_from(range.end, tiles_end)) {
      function(
          first, end, range,
          [&](int64_t tile) {
            return Columns{tiling.identity(), tile * kTileKeys};
          },
          [&](int64_t tile) {
            return tile * kTileKeys < low_last || (tile + 1) * kTileKeys > high_first;
          });
    }
  }
}

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

// Calls function(tile, columns, cut) for the tiles of a block of a sequence of `tokens`: `cut` if columns hold
// no key
template <class Function>
inline void for_each_tile_of_block(const Tiling& tiling, int64_t block, int64_t tokens, Function function) {
  for (int64_t part = 0; part < tiling.tiles_per_block(); ++part) {
    const int64_t tile = block * tiling.tiles_per_block() + part;
    const Span span = tiling.span(tile, tokens);
    if (span.count <= 0) continue;
    const bool cut = span.count < kTileKeys;
    ShortColumns few;
    function(tile, Columns{cut ? few.of(span.count) : span.key, span.first}, cut);
  }
}

}  // namespace trisparse::TRISPARSE_SET
