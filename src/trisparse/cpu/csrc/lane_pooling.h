// Eq. 9 for rows in lanes: keys come in their own order, one vector of rows each.
#pragma once
#include "pooling.h"

namespace trisparse::TRISPARSE_SET {

// The pooled scores of a piece of a sequence whose first key is the first of a block. A block's score is what
// its own keys give, plus what the block before it owes: always added in this order, so that blocks alike
// score alike, also where a piece ends between them.
class LanePooling {
 public:
  LanePooling(const PoolingWeights& weights, int columns)
      : weights_(weights), columns_(columns), own_(3 * columns) {}

  // blocks that `tiles` tiles reach, and one that the last of them may owe something to
  static int64_t blocks(const PoolingWeights& weights, int64_t tiles) {
    return (tiles * kTileKeys + weights.phases - 1) / weights.phases + 1;
  }

  // `scores`: [blocks][columns]
  void begin(float* scores) {
    scores_ = scores;
    std::fill(own_.get(), own_.get() + 3 * columns_, 0.0f);
  }

  // Probabilities [64][16] of the piece's tile `tile`, for the vector at `column`
  void add(int64_t tile, int column, const float* probabilities) {
    Floats own = load(at(0, column)), next = load(at(1, column)), owed = load(at(2, column));
    float* score = scores_ + tile * kTileKeys / weights_.phases * columns_ + column;
    size_t phase = size_t(tile * kTileKeys % weights_.phases);
    for (int key = 0; key < kTileKeys; ++key) {
      const Floats p = load(probabilities + key * kPanel);
      own += p * weights_.own[phase];
      next += p * weights_.next[phase];
      if (++phase < weights_.own.size()) continue;
      store(score, own + owed);
      owed = next;
      own = next = Floats{};
      score += columns_;
      phase = 0;
    }
    store(at(0, column), own);
    store(at(1, column), next);
    store(at(2, column), owed);
  }

  // before tile `tile`
  void rescale(int64_t tile, int column, Floats factor) {
    const int64_t done = tile * kTileKeys / weights_.phases;
    for (int64_t block = 0; block < done; ++block) scale(scores_ + block * columns_ + column, factor);
    for (int line = 0; line < 3; ++line) scale(at(line, column), factor);
  }

  // after the last of `tiles` tiles
  void end(int64_t tiles) {
    const int64_t done = tiles * kTileKeys / weights_.phases;
    const bool whole = tiles * kTileKeys % weights_.phases == 0;
    float* score = scores_ + done * columns_;
    for (int column = 0; column < columns_; ++column) {
      score[column] = *at(0, column) + *at(2, column);
      if (!whole) score[columns_ + column] = *at(1, column);
    }
  }

 private:
  static void scale(float* numbers, Floats factor) { store(numbers, load(numbers) * factor); }
  float* at(int line, int column) const { return own_.get() + line * columns_ + column; }

  const PoolingWeights& weights_;
  int columns_;
  float* scores_ = nullptr;
  Buffer<float> own_;  // [3][columns]: of the block begun, for the one after it, owed by the one before
};

}  // namespace trisparse::TRISPARSE_SET
