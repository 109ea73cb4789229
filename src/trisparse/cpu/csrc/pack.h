// Keys and values as right operands, packed once per call in tiles of 64.
#pragma once
#include <vector>

#include "matrices.h"
#include "number.h"
#include "sequence.h"
#include "workers.h"

namespace trisparse::TRISPARSE_SET {

// Which key stands in which column of which tile
struct KeyOrder {
  // Tiles over `keys` keys in their own order, or, with `phases` > 1, so that lane j of the p-th vector of 16
  // columns holds key phases * j + p of a run of 16 * phases keys: pooling `phases` neighbours is then adding
  // vectors.
  KeyOrder(int64_t keys, int64_t phases) : phases(int(phases)) {
    const int64_t run = kPanel * phases;
    tiles = tiles_for(keys);
    key.resize(size_t(tiles * kTileKeys));
    for (size_t index = 0; index < key.size(); ++index) {
      const int64_t vector = int64_t(index) / kPanel, lane = int64_t(index) % kPanel;
      key[index] = int32_t(vector / phases * run + phases * lane + vector % phases);
    }
    last.resize(size_t(tiles));
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const auto begin = key.begin() + tile * kTileKeys;
      last[size_t(tile)] = *std::max_element(begin, begin + kTileKeys);
    }
  }

  // that hold the first `keys` keys, in whole runs
  int64_t tiles_for(int64_t keys) const {
    return round_up(round_up(keys, kPanel * phases), kTileKeys) / kTileKeys;
  }

  int phases;
  int64_t tiles;
  std::vector<int32_t> key;   // [tiles * 64]
  std::vector<int32_t> last;  // highest key of each tile
};

// Column c of a tile is key `first + key[c]` of a sequence, if lowest <= key[c] < count; else it is zero
struct Span {
  int64_t first, count;
  const int32_t* key;
  int64_t lowest = 0;
  int64_t ring = 0;  // slots that the keys go round in; 0: they lie at their positions
};

// How the keys of a sequence are cut into tiles: in the order of a KeyOrder, or in blocks, several tiles to a
// block of more than 64 keys, one tile to a smaller one
class Tiling {
 public:
  explicit Tiling(const KeyOrder& order) : order_(&order) {}

  explicit Tiling(int64_t block) : block_(block), identity_(kTileKeys, 1) {}

  int64_t tiles_per_block() const { return round_up(block_, kTileKeys) / kTileKeys; }

  int64_t tiles(int64_t keys) const {
    if (order_) return order_->tiles_for(keys);
    return keys / block_ * tiles_per_block() + round_up(keys % block_, kTileKeys) / kTileKeys;
  }

  Span span(int64_t tile, int64_t keys) const {
    if (order_) return {0, keys, order_->key.data() + tile * kTileKeys};
    const int64_t inside = tile % tiles_per_block() * kTileKeys;
    const int64_t first = tile / tiles_per_block() * block_ + inside;
    return {first, std::min(block_ - inside, keys - first), identity_.key.data()};
  }

  // all positions 0 .. 63 in order
  const int32_t* identity() const { return identity_.key.data(); }

 private:
  const KeyOrder* order_ = nullptr;
  int64_t block_ = kTileKeys;
  KeyOrder identity_{kTileKeys, 1};
};

template <class Engine>
inline void stage_row(const void* from, int32_t type, int count, int padded, typename Engine::Element* to) {
  Engine::stage(from, type, count, to);
  for (int index = count; index < padded; ++index) to[index] = typename Engine::Element(0);
}

// The rows of a tile as elements [64][padded]; `first_row` is the tensor's row of the sequence's key 0
template <class Engine>
inline void stage_tile(const Tensor& tensor, int32_t type, const Sequence& sequence, int64_t first_row,
                       const Span& span, int count, int padded, typename Engine::Element* to) {
  for (int column = 0; column < kTileKeys; ++column) {
    typename Engine::Element* place = to + column * padded;
    if (span.lowest <= span.key[column] && span.key[column] < span.count) {
      const int64_t position = first_row + span.first + span.key[column];
      const int64_t row = span.ring ? position % span.ring : position;
      stage_row<Engine>(row_of(tensor, type, sequence.batch, row, sequence.group), type, count, padded,
                        place);
    } else {
      std::fill(place, place + padded, typename Engine::Element(0));
    }
  }
}

// The tiles of one tensor for all sequences, as right operands: with the keys as columns, as scores need it,
// or with the keys as depth, as sums over keys need it
template <class Engine>
struct Operand {
  using Element = typename Engine::Element;

  Operand() = default;
  Operand(int64_t tiles, int features) : tile_size(int64_t(features) * kTileKeys), data(tiles * tile_size) {}

  Element* tile(int64_t index) const { return data.get() + index * tile_size; }

  int64_t tile_size = 0;
  Buffer<Element> data;
};

// What a branch may see of a sequence: rows first_row + lowest .. first_row + count - 1 of its tensors
struct Keys {
  int64_t first_row, count, lowest = 0, ring = 0;
};

inline Keys keys_of(int branch, const Sequence& s) {
  return branch == kCompressed ? Keys{s.first_block, s.blocks} : Keys{s.first_token, s.tokens};
}

// Which of a branch's tensors are wanted in which form
struct Forms {
  bool key_columns, key_depth, value_columns, value_depth;
};
constexpr Forms kForwardForms{true, false, false, true};
constexpr Forms kScoreForms{true, false, false, false};
constexpr Forms kBackwardForms{true, true, true, false};

// Keys and values of one branch, packed. Tile t of sequence s, if it was packed, is number first_tile[s] + t.
template <class Engine>
struct PackedBranch {
  Tiling tiling;
  std::vector<int64_t> first_tile;
  Operand<Engine> key_columns, key_depth, value_columns, value_depth;

  explicit PackedBranch(Tiling tiling) : tiling(std::move(tiling)) {}
};

// Tiles, rows or columns: begin <= index < end
struct Range {
  int64_t begin, end;

  int64_t count() const { return std::max<int64_t>(0, end - begin); }
};

// A sequence's share of a packing: what of its keys may be seen, and which tiles are given a place
struct PackedSequence {
  Keys keys;
  Range tiles;
};

// Packs those tiles of a branch that are `wanted`, [places]; `parts` [sequences]
template <class Engine>
Status pack_tiles(const Shape& shape, int32_t type, const std::vector<Sequence>& sequences,
                  const Branch& branch, Forms forms, const std::vector<PackedSequence>& parts,
                  const std::vector<uint8_t>& wanted, const ThreadPool& pool, PackedBranch<Engine>& packed) {
  using Element = typename Engine::Element;
  const int64_t places = int64_t(wanted.size());
  std::vector<int64_t> ends;
  packed.first_tile.clear();
  for (const PackedSequence& part : parts) {
    const int64_t begin = ends.empty() ? 0 : ends.back();
    packed.first_tile.push_back(begin - part.tiles.begin);
    ends.push_back(begin + part.tiles.count());
  }
  const auto make = [&](bool asked, int features) { return Operand<Engine>(asked ? places : 0, features); };
  packed.key_columns = make(forms.key_columns, shape.head_depth);
  packed.key_depth = make(forms.key_depth, shape.head_depth);
  packed.value_columns = make(forms.value_columns, shape.value_depth);
  packed.value_depth = make(forms.value_depth, shape.value_depth);
  const int64_t widest = std::max(shape.head_depth, shape.value_depth);
  const auto make_worker = [&] { return Buffer<Element>(kTileKeys * widest); };
  const auto pack = [&](Buffer<Element>& rows, int64_t place) {
    if (!wanted[size_t(place)]) return;
    const size_t index = size_t(std::upper_bound(ends.begin(), ends.end(), place) - ends.begin());
    const Sequence& sequence = sequences[index];
    const Keys& seen = parts[index].keys;
    Span span = packed.tiling.span(place - packed.first_tile[index], seen.count);
    span.lowest = seen.lowest - span.first;
    span.ring = seen.ring;
    const auto put = [&](const Tensor& tensor, int count, int padded, const Operand<Engine>& columns,
                         const Operand<Engine>& depth) {
      if (!columns.data.get() && !depth.data.get()) return;
      stage_tile<Engine>(tensor, type, sequence, seen.first_row, span, count, padded, rows.get());
      if (columns.data.get()) Engine::pack_columns(rows.get(), padded, kTileKeys, padded, columns.tile(place));
      if (depth.data.get()) Engine::pack_rows(rows.get(), padded, kTileKeys, padded, depth.tile(place));
    };
    put(branch.key, shape.head_dim, shape.head_depth, packed.key_columns, packed.key_depth);
    put(branch.value, shape.value_dim, shape.value_depth, packed.value_columns, packed.value_depth);
  };
  const int64_t work = places * kTileKeys * (shape.head_depth + shape.value_depth);
  return run_tasks(pool, places, threads_for(pool, places, 64 * work), make_worker, pack);
}

// `keys_of(sequence)` -> Keys; `tiles_of(index, all)` -> the tiles of a sequence of `all` tiles that are given
// a place; `wanted(index, tile)` leaves some of them empty. Whatever those are, the work is compiled once.
template <class Engine, class KeysOf, class TilesOf, class Wanted>
Status pack_branch(const Shape& shape, int32_t type, const std::vector<Sequence>& sequences,
                   const Branch& branch, Forms forms, KeysOf keys_of, TilesOf tiles_of, Wanted wanted,
                   const ThreadPool& pool, PackedBranch<Engine>& packed) {
  std::vector<PackedSequence> parts;
  std::vector<uint8_t> is_wanted;
  for (size_t index = 0; index < sequences.size(); ++index) {
    const Keys keys = keys_of(sequences[index]);
    const Range tiles = tiles_of(index, packed.tiling.tiles(keys.count));
    parts.push_back({keys, tiles});
    for (int64_t tile = tiles.begin; tile < tiles.end; ++tile) is_wanted.push_back(wanted(index, tile));
  }
  return pack_tiles<Engine>(shape, type, sequences, branch, forms, parts, is_wanted, pool, packed);
}

}  // namespace trisparse::TRISPARSE_SET
