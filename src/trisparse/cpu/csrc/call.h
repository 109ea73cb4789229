// A whole call with many rows: its sequences and chunks, and its packed keys and values.
#pragma once
#include "chunk.h"
#include "compressed.h"
#include "visibility.h"

namespace trisparse::TRISPARSE_SET {

// Everything that the chunks of a call share
template <class Engine>
struct Call {
  using Element = typename Engine::Element;

  Call(const Problem& problem, const ThreadPool& pool)
      : problem(problem),
        pool(pool),
        shape(problem),
        sequences(sequences_of(problem)),
        order(most_blocks(), problem.select_block / problem.compress_stride) {
    uint32_t threads = 1;
    pool.get_num_threads(&threads);
    chunks = chunks_of(problem, sequences, threads);
    for (const Chunk& chunk : chunks) most_tokens = std::max(most_tokens, chunk.tokens);
  }

  int64_t most_blocks() const {
    int64_t most = 0;
    for (const Sequence& sequence : sequences) most = std::max(most, sequence.blocks);
    return most;
  }

  bool has(int branch) const { return problem.branches[branch].key.data != nullptr; }

  ChunkRows rows(const Chunk& chunk) const { return {sequences[size_t(chunk.sequence)], chunk, shape.heads}; }

  // of any chunk, padded to whole pairs of tiles
  int64_t most_rows() const { return round_up(int64_t(most_tokens) * shape.heads, kPairRows); }

  // multiplications of the attended pairs, roughly: enough to tell a small call from a large one
  int64_t work() const {
    int64_t keys = 0;
    for (const Sequence& s : sequences) {
      const int64_t chosen = problem.slots * problem.select_block;
      keys += s.rows *
              ((has(kCompressed) ? s.blocks / 2 : 0) + (has(kSelected) ? std::min(s.tokens, chosen) : 0) +
               (has(kWindow) ? std::min(s.tokens, problem.window) : 0));
    }
    return keys * shape.heads * (shape.head_dim + shape.value_dim);
  }

  int64_t threads(int64_t tasks) const { return threads_for(pool, tasks, work()); }

  const Problem& problem;
  const ThreadPool& pool;
  Shape shape;
  std::vector<Sequence> sequences;
  KeyOrder order;
  std::vector<Chunk> chunks;
  int most_tokens = 0;
};

// The lowest token that the window branch of a sequence sees
inline int64_t first_window_key(const Problem& p, const Sequence& s) {
  return visible_keys(p, kWindow, s.start).low;
}

// The packed keys and values of a call. Where selected and window branch share theirs, they share the
// packing, unless a window begins inside a tile: tokens before it must be absent there, while the selected
// branch may see them.
template <class Engine>
struct PackedCall {
  PackedCall(const Problem& p, const std::vector<Sequence>& sequences, const KeyOrder& order)
      : compressed(Tiling(order)), selected(Tiling(p.select_block)), own_window(Tiling(kTileKeys)) {
    const Branch &a = p.branches[kSelected], &b = p.branches[kWindow];
    const auto same = [](const Tensor& x, const Tensor& y) {
      return x.data == y.data && x.batch_stride == y.batch_stride && x.row_stride == y.row_stride &&
             x.head_stride == y.head_stride;
    };
    const auto whole_tiles = [&](const Sequence& s) { return first_window_key(p, s) % kTileKeys == 0; };
    shared = p.select_block == kTileKeys && p.window_ring == 0 && a.key.data && same(a.key, b.key) &&
             same(a.value, b.value) && std::all_of(sequences.begin(), sequences.end(), whole_tiles);
  }

  const PackedBranch<Engine>& window() const { return shared ? selected : own_window; }

  const PackedBranch<Engine>& branch(int index) const {
    return index == kCompressed ? compressed : index == kSelected ? selected : window();
  }

  PackedBranch<Engine> compressed, selected, own_window;
  bool shared;
};

// [sequence][block]: whether some row chose it
inline std::vector<std::vector<uint8_t>> wanted_blocks(const Problem& p,
                                                       const std::vector<Sequence>& sequences) {
  std::vector<std::vector<uint8_t>> wanted;
  for (const Sequence& s : sequences) {
    std::vector<uint8_t> blocks(size_t((s.tokens + p.select_block - 1) / p.select_block), 0);
    for (int64_t row = 0; row < s.rows; ++row) {
      const int32_t* ids = ids_of(p, s, row);
      for (int64_t slot = 0; slot < p.slots; ++slot) {
        if (ids[slot] >= 0 && size_t(ids[slot]) < blocks.size()) blocks[size_t(ids[slot])] = 1;
      }
    }
    wanted.push_back(std::move(blocks));
  }
  return wanted;
}

// Are there so few query rows that packing only what they chose pays?
inline bool few_rows(const Problem& p, const std::vector<Sequence>& sequences) {
  int64_t pairs = 0, blocks = 0;
  for (const Sequence& s : sequences) {
    pairs += s.rows * p.slots;
    blocks += s.tokens / p.select_block;
  }
  return pairs < blocks;
}

inline Range all_tiles(size_t, int64_t tiles) { return {0, tiles}; }
inline bool is_wanted(size_t, int64_t) { return true; }

template <class Engine>
Status pack_compressed(const Call<Engine>& call, Forms forms, PackedCall<Engine>& packed) {
  if (!call.has(kCompressed)) return kOk;
  if (!call.problem.branches[kCompressed].value.data) forms = kScoreForms;
  const auto block_keys = [](const Sequence& s) { return keys_of(kCompressed, s); };
  return pack_branch<Engine>(call.shape, call.problem.data_type, call.sequences,
                             call.problem.branches[kCompressed], forms, block_keys, all_tiles, is_wanted,
                             call.pool, packed.compressed);
}

// `few`: leave out blocks that nobody chose (then ids must be known)
template <class Engine>
Status pack_selected(const Call<Engine>& call, Forms forms, bool few, PackedCall<Engine>& packed) {
  const Problem& p = call.problem;
  if (!call.has(kSelected)) return kOk;
  const auto all_keys = [](const Sequence& s) { return keys_of(kSelected, s); };
  const auto blocks = few ? wanted_blocks(p, call.sequences) : std::vector<std::vector<uint8_t>>();
  const int64_t per_block = packed.selected.tiling.tiles_per_block();
  const auto wanted = [&](size_t index, int64_t tile) {
    const bool in_window = (tile + 1) * kTileKeys > first_window_key(p, call.sequences[index]);
    return !few || blocks[index][size_t(tile / per_block)] || (packed.shared && in_window);
  };
  return pack_branch<Engine>(call.shape, p.data_type, call.sequences, p.branches[kSelected], forms, all_keys,
                             all_tiles, wanted, call.pool, packed.selected);
}

// The tiles that the windows of the chunks `part` reach into, [sequences]
template <class Engine>
std::vector<Range> window_tiles(const Call<Engine>& call, Range part) {
  std::vector<Range> reached(call.sequences.size(), Range{0, 0});
  for (int64_t index = part.begin; index < part.end; ++index) {
    const Chunk& chunk = call.chunks[size_t(index)];
    const int64_t first = chunk.position(call.sequences[size_t(chunk.sequence)]);
    const int64_t begin = visible_keys(call.problem, kWindow, first).low / kTileKeys;
    const int64_t high = visible_keys(call.problem, kWindow, first + chunk.tokens - 1).high;
    const int64_t end = std::max<int64_t>(0, high + kTileKeys - 1) / kTileKeys;
    Range& range = reached[size_t(chunk.sequence)];
    range = range.count() ? Range{std::min(range.begin, begin), std::max(range.end, end)}
                          : Range{begin, end};
  }
  return reached;
}

// What the chunks `part` see of the window branch; what was packed before is given back
template <class Engine>
Status pack_window(const Call<Engine>& call, Forms forms, Range part, PackedCall<Engine>& packed) {
  const Problem& p = call.problem;
  if (!call.has(kWindow) || packed.shared) return kOk;
  // tokens before the first row's window are as good as absent, also where they are not finite
  const auto keys = [&](const Sequence& s) {
    return Keys{s.first_token, s.tokens, first_window_key(p, s), p.window_ring};
  };
  const std::vector<Range> reached = window_tiles(call, part);
  const auto tiles = [&](size_t index, int64_t) { return reached[index]; };
  return pack_branch<Engine>(call.shape, p.data_type, call.sequences, p.branches[kWindow], forms, keys, tiles,
                             is_wanted, call.pool, packed.own_window);
}

template <class Engine>
Status pack_tokens(const Call<Engine>& call, Forms forms, bool few, PackedCall<Engine>& packed) {
  const Status status = pack_selected(call, forms, few, packed);
  return status == kOk ? pack_window(call, forms, {0, int64_t(call.chunks.size())}, packed) : status;
}

}  // namespace trisparse::TRISPARSE_SET
