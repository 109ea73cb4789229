// The compressed branch of a chunk, and from the same probabilities its rows' selected blocks (spec 1-4).
#pragma once
#include <numeric>

#include "chunk.h"
#include "pooling.h"
#include "run.h"
#include "topn.h"

namespace trisparse::TRISPARSE_SET {

// Rows that go over a group of compressed keys together while it is in the second-level cache
constexpr int64_t kCompressedRows = 256;

// Tokens whose rows fill whole pairs of tiles: a tile must not reach into rows that are not its own
inline int64_t tokens_per_part(int64_t heads) {
  const int64_t unit = std::lcm(heads, int64_t(kPairRows));
  return std::max(unit, kCompressedRows / unit * unit) / heads;
}

template <class Engine>
class CompressedForward {
 public:
  using Element = typename Engine::Element;

  CompressedForward(const Problem& p, const KeyOrder& order)
      : problem_(p),
        order_(order),
        heads_(p.heads / p.groups),
        pooling_(p, p.select ? order.tiles : 0, p.select ? tokens_per_part(heads_) * heads_ : 0),
        top_(p.num_selected, p.num_initial, p.num_local) {}

  // Fills `state`; with `ids`, writes the rows' blocks there.
  void attend(const Shape& shape, const ChunkRows& rows, const PackedBranch<Engine>& packed,
              const Element* query, const SoftmaxRows& state, bool with_values) {
    const int64_t step = tokens_per_part(heads_);
    for (int64_t token = 0; token < rows.chunk.tokens; token += step) {
      const int64_t last = std::min<int64_t>(token + step, rows.chunk.tokens);
      part(shape, rows, packed, query, state, with_values, token * heads_, last * heads_);
      if (problem_.select) choose(rows, state, token, last);
    }
  }

 private:
  struct Hooks {
    Pooling& pooling;
    int64_t first_row;
    bool enabled;

    void on_row(int64_t tile, int64_t row, const Floats* p) {
      if (enabled) pooling.add(tile, row - first_row, p);
    }
    void on_raise(int64_t tile, int64_t row, float factor) {
      if (enabled) pooling.rescale(row - first_row, tile, factor);
    }
  };

  void part(const Shape& shape, const ChunkRows& rows, const PackedBranch<Engine>& packed,
            const Element* query, const SoftmaxRows& state, bool with_values, int64_t begin, int64_t end) {
    const int64_t base = packed.first_tile[size_t(rows.chunk.sequence)];
    Hooks hooks{pooling_, begin, problem_.select != 0};
    if (problem_.select) pooling_.reset(end - begin);
    for_each_compressed_group(
        order_, state.high, begin, end,
        [&](int64_t first, int64_t last, Range group, auto columns, auto masked) {
          RunGroup<Engine, true, Hooks> run(shape, state, query, first, last, scratch_, hooks);
          run.attend(packed, base, group, with_values, columns, masked);
        });
  }

  // Eq. 10: the heads' scores, each over its total, added in the order of the heads
  void choose(const ChunkRows& rows, const SoftmaxRows& state, int64_t token, int64_t last) {
    for (int64_t first = token; token < last; ++token) {
      const int64_t own = (rows.chunk.position(rows.sequence) + token) / problem_.select_block;
      scores_.assign(size_t(round_up(std::max<int64_t>(0, own + 1), kLanes)), 0.0f);
      for (int64_t head = 0; head < heads_; ++head) {
        const int64_t row = token * heads_ + head;
        const float total = sum(load(state.total + row * kLanes));
        if (total == 0.0f) continue;
        // rows of one pair of tiles went as far as the last of them
        const int64_t pair_end = std::min(
            (row - first * heads_) / kPairRows * kPairRows + kPairRows + first * heads_, last * heads_);
        const int64_t known = pooling_.blocks(order_.tiles_for(state.high[pair_end - 1]));
        const float* pooled = pooling_.scores(row - first * heads_);
        const float weight = 1.0f / total;
        const int64_t count = std::min(own + 1, known);
        for (int64_t block = 0; block < count; ++block) scores_[size_t(block)] += pooled[block] * weight;
      }
      top_.choose(scores_.data(), own, ids_of(problem_, rows.sequence, rows.chunk.first_token + token));
    }
  }

  const Problem& problem_;
  const KeyOrder& order_;
  int64_t heads_;
  RunScratch<Engine> scratch_;
  Pooling pooling_;
  TopBlocks top_;
  std::vector<float> scores_;
};

}  // namespace trisparse::TRISPARSE_SET
