// Few rows against many keys: the keys that compressed and window branch see are cut into pieces, each a task
// with a softmax of its own. Where the cuts are depends on positions only, so a row's bits depend neither on
// its neighbours in the batch nor on the number of threads.
#pragma once
#include <numeric>
#include <vector>

#include "lane_pooling.h"
#include "lanes.h"
#include "visibility.h"

namespace trisparse::TRISPARSE_SET {

// Keys of one piece: some 50 to 200 us of reading for a few groups, and sums are a hundredth of what is read
constexpr int64_t kCompressedPiece = 512;
constexpr int64_t kWindowPiece = 1024;

// For all groups of a batch row
struct Piece {
  int branch;
  int64_t batch;
  int64_t first, tiles;  // first key, a multiple of 64
  int64_t place;         // of the results, one after the other for each group
};

// What a piece has found for one group
struct PieceResult {
  LaneRows rows;
  float* scores;   // [blocks + 1][columns], pooled, relative to the rows' references; null: none
  int64_t blocks;  // the piece's own; the last line is owed to the block after them
};

class Pieces {
 public:
  // `columns`: the rows of a sequence, in whole panels
  Pieces(const Problem& p, const Shape& shape, const std::vector<Sequence>& sequences, int columns)
      : problem_(p), weights_(p), columns_(columns), features_(shape.value_depth) {
    const int64_t unit = std::lcm<int64_t>(weights_.phases, kTileKeys);
    const int64_t step[kBranches] = {round_up(kCompressedPiece, unit), 0, kWindowPiece};
    for (int64_t batch = 0; batch < p.batch; ++batch) {
      for (int branch : {kCompressed, kWindow}) {
        first_.push_back(pieces_.size());
        if (p.branches[branch].key.data) cut(branch, sequences[size_t(batch * p.groups)], step[branch]);
      }
    }
    first_.push_back(pieces_.size());
    results_ = Buffer<float>(room_);
  }

  const std::vector<Piece>& all() const { return pieces_; }
  const PoolingWeights& weights() const { return weights_; }
  int columns() const { return columns_; }

  // `found`, filled with a group's results of a branch, in the order of the keys
  void results(const Sequence& s, int branch, std::vector<PieceResult>& found) const {
    found.clear();
    const size_t index = size_t(2 * s.batch + (branch == kWindow));
    for (size_t piece = first_[index]; piece < first_[index + 1]; ++piece)
      found.push_back(result(pieces_[piece], s.group));
  }

  PieceResult result(const Piece& piece, int64_t group) const {
    float* memory = results_.get() + piece.place + group * size(piece);
    float* scores = pooled(piece) ? memory + LaneRows::size(columns_, features_) : nullptr;
    const int64_t blocks = LanePooling::blocks(weights_, piece.tiles) - 1;
    return {LaneRows::in(memory, columns_, features_), scores, blocks};
  }

 private:
  // the keys that some row of a sequence sees; all groups see the same
  void cut(int branch, const Sequence& s, int64_t step) {
    const int64_t low = visible_keys(problem_, branch, s.start).low;
    const int64_t high = visible_keys(problem_, branch, s.start + s.rows - 1).high;
    for (int64_t begin = low / step * step; begin < high; begin += step) {
      const int64_t first = std::max(begin, low / kTileKeys * kTileKeys);
      const int64_t tiles = (std::min(begin + step, high) - first + kTileKeys - 1) / kTileKeys;
      pieces_.push_back({branch, s.batch, first, tiles, room_});
      room_ += problem_.groups * size(pieces_.back());
    }
  }

  bool pooled(const Piece& piece) const { return piece.branch == kCompressed && problem_.select; }

  int64_t size(const Piece& piece) const {
    const int64_t lines = pooled(piece) ? LanePooling::blocks(weights_, piece.tiles) : 0;
    return LaneRows::size(columns_, features_) + lines * columns_;
  }

  const Problem& problem_;
  PoolingWeights weights_;
  int columns_;
  int64_t features_;
  int64_t room_ = 0;
  std::vector<Piece> pieces_;
  std::vector<size_t> first_;  // [batch][2], and the end
  Buffer<float> results_;
};

}  // namespace trisparse::TRISPARSE_SET
