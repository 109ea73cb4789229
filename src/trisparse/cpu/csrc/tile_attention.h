// Attention of few rows to a tile of keys and values where they lie in their tensors: scores are transposed,
// [64 keys][rows], so that keys are the left operand of their product and are not packed.
#pragma once
#include "lane_pooling.h"
#include "lanes.h"
#include "pack.h"
#include "scores.h"

namespace trisparse::TRISPARSE_SET {

// What a tile's keys and values are read from; no value: only probabilities are wanted
struct TileSource {
  KeyPlace key;
  KeyPlace value;
  bool with_values;
};

// What the rows bring: their packed queries, limits and state
template <class Engine>
struct TileQuery {
  const typename Engine::Element* panels;  // [columns / 16] right operands of depth `head_depth`
  LaneLimits limits;
  LaneRows rows;
};

template <class Engine>
class TileAttention {
 public:
  using Element = typename Engine::Element;

  TileAttention(const Shape& shape, int32_t type, int columns)
      : shape_(shape),
        exponent_(shape),
        keys_in_place_(Engine::in_place(type) && shape.head_dim == shape.head_depth),
        values_whole_(shape.value_dim == shape.value_depth),
        rows_(kTileKeys * std::max(shape.head_depth, shape.value_depth)),
        weights_(columns * kTileKeys),
        scores_(kTileKeys * columns) {}

  // The tile and source that `attend` will be given after the next one
  void expect(const KeyTile& tile, const TileSource& source) {
    next_key_ = Ahead(source.key, tile, shape_.head_dim);
    next_value_ = source.with_values ? Ahead(source.value, tile, shape_.value_dim) : Ahead();
    const int64_t shares = kScoreShare * 4 + kTileKeys + kWeighShare + (kPackShare + kProductShare) * 8;
    share_ = (next_key_.lines() + next_value_.lines() + shares - 1) / shares;
  }

  void expect_nothing() { next_key_ = next_value_ = Ahead(); }

  // `pooling` may be null; `index` counts the tiles of the rows' run
  template <bool precise>
  void attend(const KeyTile& tile, bool masked, const TileSource& source, const TileQuery<Engine>& query,
              int64_t index, LanePooling* pooling) {
    score(tile, source.key, query);
    for (int panel = 0; panel < query.rows.columns; panel += kPanel) {
      for (int column = panel; column < panel + kPanel; column += kLanes) {
        if (masked) {
          exponentiate<precise, true>(tile, query, column, index, pooling);
        } else {
          exponentiate<precise, false>(tile, query, column, index, pooling);
        }
      }
      if (source.with_values) weigh(weights_.get() + panel * kTileKeys);
      ask(kWeighShare);
    }
    if (source.with_values) add_values(tile, source.value, query.rows);
  }

 private:
  // Lines of the next tile that are asked for after each of the 4 products of a score, after the exponential
  // of a key (1), after the weights of a panel, after a step of values was packed and after it was
  // multiplied: as the time of a tile goes, for 128 features in bfloat16; tiles with more lines ask for more
  static constexpr int64_t kScoreShare = 8, kWeighShare = 32, kPackShare = 16, kProductShare = 32;

  void ask(int64_t share) { next_value_.ask(next_key_.ask(share * share_)); }

  // scores_ [64][columns]
  void score(const KeyTile& tile, const KeyPlace& place, const TileQuery<Engine>& query) {
    const bool in_place = keys_in_place_ && place.neighbours(tile);
    const ptrdiff_t stride = in_place ? place.tensor.row_stride : shape_.head_depth;
    Matrices<Element> m{};
    m.tiles = 2;
    m.out_stride = query.rows.columns;
    m.left_stride = stride;
    m.right = query.panels;
    m.panel_stride = int64_t(shape_.head_depth) * kPanel;
    m.panels = query.rows.columns / kPanel;
    m.depth = shape_.head_depth;
    m.runs = 1;
    for (int first = 0; first < kTileKeys; first += kPairRows) {
      const Element* keys = rows_.get();
      if (in_place) {
        keys = static_cast<const Element*>(place.address(tile.key[0])) + first * stride;
      } else {
        // multiplied while they are near
        stage(tile, place, {first, first + kPairRows}, shape_.head_dim, shape_.head_depth);
      }
      for (int half = 0; half < 2; ++half) {
        m.left[half] = keys + half * kTileRows * stride;
        m.out[half] = scores_.get() + (first + half * kTileRows) * m.out_stride;
      }
      Engine::multiply(m);
      ask(kScoreShare);
    }
  }

  template <bool precise, bool masked>
  void exponentiate(const KeyTile& tile, const TileQuery<Engine>& query, int column, int64_t index,
                    LanePooling* pooling) {
    const LaneRows& rows = query.rows;
    const LaneTile<Engine, precise, masked> lanes(scores_.get() + column, rows.columns, tile, query.limits,
                                                  column, exponent_);
    const bool asks = column == 0;
    lanes.settle(rows.reference + column, rows.total + column, [&](Floats factor) {
      rows.rescale(column, factor);
      if (pooling) pooling->rescale(index, column, factor);
    });
    float* probabilities = probabilities_.get() + column % kPanel;
    lanes.exponentiate(rows.reference + column, rows.total + column, probabilities, [&] {
      if (asks) ask(1);
    });
    if (pooling) pooling->add(index, column, probabilities);
  }

  // probabilities of a panel [64][16] -> left operand [16][64]
  void weigh(Element* to) {
    float lines[kTileRows * kTileKeys];
    for (int key = 0; key < kTileKeys; key += kSquare)
      transpose_square(probabilities_.get() + key * kPanel, kPanel, lines + key, kTileKeys);
    for (int row = 0; row < kTileRows; ++row) {
      Floats vectors[kTileVectors];
      for (int v = 0; v < kTileVectors; ++v) vectors[v] = load(lines + row * kTileKeys + v * kLanes);
      Engine::store_elements(to + row * kTileKeys, vectors, kTileVectors);
    }
  }

  void add_values(const KeyTile& tile, const KeyPlace& place, const LaneRows& rows) {
    const bool read = values_whole_ && place.neighbours(tile);
    if (!read) stage(tile, place, {0, kTileKeys}, shape_.value_dim, shape_.value_depth);
    // two steps of columns take turns in little memory: what was just packed is multiplied while it is near
    const int depth = shape_.value_depth;
    for (int column = 0; column < depth; column += kStep) {
      const int columns = std::min(kStep, depth - column);
      if (read) {
        const char* from = static_cast<const char*>(place.address(tile.key[0])) + column * size_of(place.type);
        Engine::pack_tensor_rows(from, place.type, place.tensor.row_stride, kTileKeys, columns,
                                 step_of(column));
      } else {
        Engine::pack_rows(rows_.get() + column, depth, kTileKeys, columns, step_of(column));
      }
      ask(kPackShare);
      if (column > 0) add_step(column - kStep, rows);
    }
    add_step((depth - 1) / kStep * kStep, rows);
  }

  static constexpr int kStep = Engine::kFewPanels * kPanel;

  Element* step_of(int column) const { return values_.get() + column / kStep % 2 * kStep * kTileKeys; }

  // weights x packed values of a step of columns
  void add_step(int column, const LaneRows& rows) {
    const int columns = std::min(kStep, shape_.value_depth - column);
    for (int row = 0; row < rows.columns; row += kPairRows) {
      const int tiles = std::min(2, (rows.columns - row) / kTileRows);
      const Element* left[2];
      float* out[2];
      for (int half = 0; half < tiles; ++half) {
        left[half] = weights_.get() + (row + half * kTileRows) * kTileKeys;
        out[half] = rows.sums + (row + half * kTileRows) * rows.features + column;
      }
      add_product<Engine>(tiles, left, step_of(column), 1, columns, out, rows.features);
    }
    ask(kProductShare);
  }

  // rows_ [columns][padded]; zeros where the tile has no key, for 0 * NaN would be NaN
  void stage(const KeyTile& tile, const KeyPlace& place, Range columns, int count, int padded) {
    for (int64_t column = columns.begin; column < columns.end; ++column) {
      Element* to = rows_.get() + (column - columns.begin) * padded;
      if (tile.key[column] == kNoKey) {
        std::fill(to, to + padded, Element(0));
      } else {
        stage_row<Engine>(place.address(tile.key[column]), place.type, count, padded, to);
      }
    }
  }

  const Shape& shape_;
  Exponent<Engine> exponent_;
  bool keys_in_place_, values_whole_;
  Buffer<Element> rows_;
  Buffer<Element> values_{2 * kStep * kTileKeys};
  Buffer<Element> weights_;  // [columns / 16][16][64]
  Buffer<float> scores_;     // [64][columns]
  Buffer<float> probabilities_{kTileKeys * kPanel};
  Ahead next_key_, next_value_;
  int64_t share_ = 1;
};

}  // namespace trisparse::TRISPARSE_SET
