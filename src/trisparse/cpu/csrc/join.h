// One softmax of several pieces' (each relative to references of its own), and the scores of the blocks from
// all heads.
#pragma once
#include <vector>

#include "pieces.h"
#include "transpose.h"

namespace trisparse::TRISPARSE_SET {

template <class Engine>
class Join {
 public:
  explicit Join(int columns) : columns_(columns), inverse_(columns) {}

  // Rows `first` .. `first + count - 1` of all pieces -> rows 0 .. count - 1 of `state`
  void rows(const std::vector<PieceResult>& pieces, int first, int count, const SoftmaxRows& state) {
    state.reset(count);
    factors_.resize(pieces.size() * size_t(columns_));
    for (int column = first / kLanes * kLanes; column < first + count; column += kLanes)
      weigh(pieces, first, count, column, state);
    for (size_t piece = 0; piece < pieces.size(); ++piece) {
      const LaneRows& rows = pieces[piece].rows;
      for (int row = 0; row < count; ++row) {
        const float factor = factors(piece)[first + row];
        const float* from = rows.sums + (first + row) * rows.features;
        float* to = state.sums + row * state.sums_stride;
        for (int64_t feature = 0; feature < rows.features; ++feature) to[feature] += from[feature] * factor;
      }
    }
  }

  // Eq. 10 for blocks 0 .. count - 1: the pooled scores of the rows joined last, each over its total, added
  // in the order of the heads
  void scores(const std::vector<PieceResult>& pieces, int first, int heads, int64_t count,
              std::vector<float>& sums) const {
    sums.assign(size_t(std::max<int64_t>(0, count)), 0.0f);
    int64_t base = 0;
    for (size_t piece = 0; piece < pieces.size(); ++piece) {
      const bool last = piece + 1 == pieces.size();
      const int64_t blocks = std::min(pieces[piece].blocks + last, count - base);
      for (int64_t block = 0; block < blocks; block += kSquare) {
        float line[kSquare];
        add_heads(pieces, piece, block, std::min<int64_t>(kSquare, blocks - block), first, heads, line);
        std::copy(line, line + std::min<int64_t>(kSquare, blocks - block), &sums[size_t(base + block)]);
      }
      base += pieces[piece].blocks;
    }
  }

 private:
  float* factors(size_t piece) { return factors_.data() + piece * size_t(columns_); }
  const float* factors(size_t piece) const { return factors_.data() + piece * size_t(columns_); }

  // References, totals and factors of one vector of columns
  void weigh(const std::vector<PieceResult>& pieces, int first, int count, int column,
             const SoftmaxRows& state) {
    Floats best = splat(-kInfinity), total{};
    for (const PieceResult& piece : pieces) {
      const Floats reference = load(piece.rows.reference + column);
      best = select(reference > best, reference, best);
    }
    for (size_t piece = 0; piece < pieces.size(); ++piece) {
      const Floats reference = load(pieces[piece].rows.reference + column);
      const Floats power = exp2<true>(Exponent<Engine>::difference(reference - best));
      const Floats factor = select(reference == splat(-kInfinity), Floats{}, power);
      store(factors(piece) + column, factor);
      total += load(pieces[piece].rows.total + column) * factor;
    }
    store(inverse_.get() + column, select(total == Floats{}, Floats{}, 1.0f / total));
    for (int lane = 0; lane < kLanes; ++lane) {
      const int row = column + lane - first;
      if (row < 0 || row >= count) continue;
      state.reference[row] = best[lane];
      state.total[row * kLanes] = total[lane];
    }
  }

  // 16 blocks of a piece, from `block` on, as far as there are `count`
  void add_heads(const std::vector<PieceResult>& pieces, size_t piece, int64_t block, int64_t count,
                 int first, int heads, float* line) const {
    std::fill(line, line + kSquare, 0.0f);
    for (int panel = first / kPanel * kPanel; panel < first + heads; panel += kPanel) {
      float by_block[kSquare * kPanel] = {}, by_row[kPanel * kSquare];
      for (int64_t index = 0; index < count; ++index) {
        for (int column = panel; column < panel + kPanel; column += kLanes)
          store(by_block + index * kPanel + column - panel, weighted(pieces, piece, block + index, column));
      }
      transpose_square(by_block, kPanel, by_row, kSquare);
      const int end = std::min(panel + kPanel, first + heads);
      for (int column = std::max(panel, first); column < end; ++column) {
        const float* row = by_row + (column - panel) * kSquare;
        for (int v = 0; v < kSquare; v += kLanes) store(line + v, load(line + v) + load(row + v));
      }
    }
  }

  // a block's score over the total; the first block of a piece has something from the piece before
  Floats weighted(const std::vector<PieceResult>& pieces, size_t piece, int64_t block, int column) const {
    const auto part = [&](size_t index, int64_t line) {
      return load(pieces[index].scores + line * columns_ + column) * load(factors(index) + column);
    };
    Floats score = part(piece, block);
    if (block == 0 && piece > 0) score += part(piece - 1, pieces[piece - 1].blocks);
    return score * load(inverse_.get() + column);
  }

  int columns_;
  Buffer<float> inverse_;       // [columns]: 1 / total, 0 where nothing was seen
  std::vector<float> factors_;  // [pieces][columns]
};

}  // namespace trisparse::TRISPARSE_SET
