// Gradient of the query, chunk by chunk: scores and their gradients are made anew, tile by tile, and the
// three branches add up in one place.
#pragma once
#include "call.h"
#include "gather.h"
#include "row_facts.h"
#include "scores.h"
#include "walk.h"

namespace trisparse::TRISPARSE_SET {

// One or two tiles of rows of a chunk, ready for products
template <class Engine>
struct GradRows {
  using Element = typename Engine::Element;
  int tiles;
  TileRows rows[2];
  const Element* query[2];  // left operands
  const Element* grad[2];
};

// Facts of a chunk's rows for one branch, and which keys they see
struct ChunkFacts {
  const float *log_sum_exp, *delta, *gate;
  const int32_t *low, *high;
};

// Gradients of scores, before the scale, of a tile's rows with 64 keys: p * (gate * dp - delta)
template <class Engine, bool masked>
inline void score_gradients(const float* scores, const float* products, const TileRows& rows,
                            const Columns& columns, const Shape& shape, const ChunkFacts& facts,
                            typename Engine::Element* to) {
  constexpr bool precise = !Engine::kRounds;
  const Exponent<Engine> exponent(shape);
  for (int i = 0; i < rows.count; ++i) {
    const int64_t row = rows.index[i];
    Floats x[kTileVectors];
    const int64_t low = masked ? facts.low[row] : 0, high = masked ? facts.high[row] : 0;
    exponents<Engine, masked>(scores + i * kTileKeys, exponent, facts.log_sum_exp[row], columns, low, high,
                              x);
    if (__builtin_expect(Exponent<Engine>::is_coarse(facts.log_sum_exp[row]), 0)) {
      for (int v = 0; v < kTileVectors; ++v) x[v] = Exponent<Engine>::not_above_zero(x[v]);
    }
    const Floats gate = splat(facts.gate[row]), delta = splat(facts.delta[row]);
    for (int v = 0; v < kTileVectors; ++v) {
      const Floats product = load(products + i * kTileKeys + v * kLanes);
      const Floats gradient = exp2<precise>(x[v]) * (gate * product - delta);
      // a hidden key's value may be so large that its product is infinite: 0 * inf would be NaN
      x[v] = masked ? select(x[v] == -kInfinity, Floats{}, gradient) : gradient;
    }
    Engine::store_elements(to + i * kTileKeys, x, kTileVectors);
  }
}

template <class Engine>
class QueryGradWorker {
 public:
  using Element = typename Engine::Element;

  QueryGradWorker(const Call<Engine>& call, const PackedCall<Engine>& packed, const RowFacts* facts,
                  const std::vector<int64_t>& first_row)
      : call_(call),
        packed_(packed),
        facts_(facts),
        first_row_(first_row),
        gatherer_(call.shape.head_depth, call.shape.heads),
        grad_gatherer_(call.shape.value_depth, call.shape.heads),
        query_(call.most_rows() * call.shape.head_depth),
        grad_(call.most_rows() * call.shape.value_depth),
        sums_(call.most_rows() * call.shape.head_depth),
        limits_(2 * call.most_rows()) {}

  void run(const Chunk& chunk) {
    const ChunkRows rows = call_.rows(chunk);
    const Shape& shape = call_.shape;
    const Problem& p = call_.problem;
    stage_chunk<Engine>(p.query, p.data_type, rows, shape.head_dim, shape.head_depth, query_.get());
    stage_chunk<Engine>(p.grad_out, p.data_type, rows, shape.value_dim, shape.value_depth, grad_.get());
    std::fill(sums_.get(), sums_.get() + round_up(rows.count(), kPairRows) * shape.head_depth, 0.0f);
    const int64_t first = first_row_[size_t(chunk.sequence)] + chunk.first_token * shape.heads;
    for (int branch = 0; branch < kBranches; ++branch) {
      if (!call_.has(branch)) continue;
      collect_facts<Engine>(p, rows, branch, first, facts_[branch]);
      const RowFacts& all = facts_[branch];
      const ChunkFacts facts{all.log_sum_exp.get() + first, all.delta.get() + first, all.gate.get() + first,
                             low(), high()};
      fill_limits(p, branch, rows, low(), high());
      if (branch == kCompressed) compressed(rows, facts);
      if (branch == kSelected) selected(rows, facts);
      if (branch == kWindow) window(rows, facts);
    }
    write(rows);
  }

 private:
  int32_t* low() const { return limits_.get(); }
  int32_t* high() const { return limits_.get() + call_.most_rows(); }

  GradRows<Engine> neighbours(int64_t first, int64_t end) const {
    GradRows<Engine> found;
    found.tiles = end - first > kTileRows ? 2 : 1;
    for (int tile = 0; tile < found.tiles; ++tile) {
      const int64_t begin = first + tile * kTileRows;
      found.rows[tile] = TileRows::from(begin, end);
      found.query[tile] = query_.get() + begin * call_.shape.head_depth;
      found.grad[tile] = grad_.get() + begin * call_.shape.value_depth;
    }
    return found;
  }

  void compressed(const ChunkRows& rows, const ChunkFacts& facts) {
    const int64_t base = packed_.compressed.first_tile[size_t(rows.chunk.sequence)];
    for_each_compressed_group(
        call_.order, high(), 0, rows.count(),
        [&](int64_t first, int64_t end, Range group, auto columns, auto masked) {
          attend(packed_.compressed, base, group, neighbours(first, end), facts, columns, masked);
        });
  }

  void window(const ChunkRows& rows, const ChunkFacts& facts) {
    const PackedBranch<Engine>& packed = packed_.window();
    const int64_t base = packed.first_tile[size_t(rows.chunk.sequence)];
    for_each_window_group(
        packed.tiling, low(), high(), rows.count(),
        [&](int64_t first, int64_t end, Range group, auto columns, auto masked) {
          attend(packed, base, group, neighbours(first, end), facts, columns, masked);
        });
  }

  // A run of tiles for neighbouring rows
  template <class ColumnsOf, class MaskedOf>
  void attend(const PackedBranch<Engine>& packed, int64_t base, Range range, const GradRows<Engine>& rows,
              const ChunkFacts& facts, ColumnsOf columns, MaskedOf masked) {
    const int count = int(range.end - range.begin);
    if (count <= 0) return;
    for (int index = 0; index < count; ++index) {
      const int64_t tile = range.begin + index;
      gradients(packed, base + tile, rows, facts, columns(tile), masked(tile), index);
    }
    const Element* left[2] = {place(0, 0), place(1, 0)};
    float* out[2];
    for (int half = 0; half < rows.tiles; ++half)
      out[half] = sums_.get() + rows.rows[half].index[0] * call_.shape.head_depth;
    add_product<Engine>(rows.tiles, left, packed.key_depth.tile(base + range.begin), count,
                        call_.shape.head_depth, out);
  }

  void selected(const ChunkRows& rows, const ChunkFacts& facts) {
    collect_pairs(call_.problem, rows, pairs_);
    const PackedBranch<Engine>& packed = packed_.selected;
    const int64_t base = packed.first_tile[size_t(rows.chunk.sequence)];
    const Shape& shape = call_.shape;
    for_each_tile_pair(
        pairs_, rows, call_.problem.select_block,
        [&](int64_t block, int tiles, const TileRows* tile_rows, bool masked) {
          GradRows<Engine> found;
          found.tiles = tiles;
          for (int half = 0; half < tiles; ++half) {
            found.rows[half] = tile_rows[half];
            found.query[half] = gatherer_.left(tile_rows[half], query_.get(), shape.head_depth, half);
            found.grad[half] = grad_gatherer_.left(tile_rows[half], grad_.get(), shape.value_depth, half);
          }
          for_each_tile_of_block(packed.tiling, block, rows.sequence.tokens,
                                 [&](int64_t tile, const Columns& columns, bool cut) {
                                   step(packed, base + tile, columns, found, facts, masked || cut);
                                 });
        });
  }

  void step(const PackedBranch<Engine>& packed, int64_t tile, const Columns& columns,
            const GradRows<Engine>& rows, const ChunkFacts& facts, bool masked) {
    gradients(packed, tile, rows, facts, columns, masked, 0);
    const Element* left[2] = {place(0, 0), place(1, 0)};
    const int64_t depth = call_.shape.head_depth;
    float* out[2];
    for (int half = 0; half < rows.tiles; ++half)
      out[half] = gatherer_.sums(rows.rows[half], sums_.get(), depth, half);
    add_product<Engine>(rows.tiles, left, packed.key_depth.tile(tile), 1, int(depth), out);
    for (int half = 0; half < rows.tiles; ++half)
      gatherer_.scatter(rows.rows[half], sums_.get(), depth, half);
  }

  // of one tile, put at place(half, index)
  void gradients(const PackedBranch<Engine>& packed, int64_t tile, const GradRows<Engine>& rows,
                 const ChunkFacts& facts, const Columns& columns, bool masked, int index) {
    tile_scores<Engine>(rows.tiles, rows.query, call_.shape.head_depth, packed.key_columns.tile(tile),
                        scores_.get());
    tile_scores<Engine>(rows.tiles, rows.grad, call_.shape.value_depth, packed.value_columns.tile(tile),
                        products_.get());
    for (int half = 0; half < rows.tiles; ++half) {
      const float* scores = scores_.get() + half * kTileRows * kTileKeys;
      const float* products = products_.get() + half * kTileRows * kTileKeys;
      if (masked) {
        score_gradients<Engine, true>(scores, products, rows.rows[half], columns, call_.shape, facts,
                                      place(half, index));
      } else {
        score_gradients<Engine, false>(scores, products, rows.rows[half], columns, call_.shape, facts,
                                       place(half, index));
      }
    }
  }

  Element* place(int half, int index) const {
    return gradients_.get() + (half * kGroupTiles + index) * kTileRows * kTileKeys;
  }

  void write(const ChunkRows& rows) {
    for (int64_t row = 0; row < rows.count(); ++row) {
      const int32_t type = call_.problem.data_type;
      write_numbers(sums_.get() + row * call_.shape.head_depth, call_.shape.scale, call_.shape.head_dim, type,
                    rows.in(call_.problem.grad_query, type, row));
    }
  }

  typename Engine::Session session_;
  const Call<Engine>& call_;
  const PackedCall<Engine>& packed_;
  const RowFacts* facts_;
  const std::vector<int64_t>& first_row_;
  RowGatherer<Engine> gatherer_, grad_gatherer_;
  Buffer<Element> query_, grad_;
  Buffer<float> sums_;
  Buffer<int32_t> limits_;
  std::vector<Pair> pairs_;
  Buffer<float> scores_{kPairRows * kTileKeys}, products_{kPairRows * kTileKeys};
  Buffer<Element> gradients_{kPairRows * kGroupTiles * kTileKeys};
};

}  // namespace trisparse::TRISPARSE_SET
