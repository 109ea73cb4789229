// The forward of few query rows, as in decoding: nothing is packed and written out, keys and values are read
// once from where they lie, by all rows of a sequence.
#pragma once
#include "join.h"
#include "output.h"
#include "pairs.h"
#include "tile_attention.h"
#include "topn.h"

namespace trisparse::TRISPARSE_SET {

// Rows of a sequence (tokens times heads), and tokens, each of which reads its own blocks, up to which this
// is faster than packing: three times at 8192 tokens and more; of 1024, 16 tokens take longer
constexpr int64_t kDecodeRows = 64;
constexpr int64_t kDecodeTokens = 16;

// A matter of one sequence's shape alone, so that the parts of a call and the whole agree on ids. A short
// sequence from its first token on is no decoding: it must get the bits that it gets as a packed document.
inline bool is_decoding(const Problem& p) {
  const int64_t rows = p.query_rows * (p.heads / p.groups);
  const bool few = p.query_rows == 1 || (rows <= kDecodeRows && p.query_rows <= kDecodeTokens);
  return few && p.query_rows > 0 && p.num_documents == 0 && (p.starts || p.query_start > 0) && !p.invariant;
}

struct DecodeCall {
  DecodeCall(const Problem& problem, const ThreadPool& pool)
      : problem(problem),
        pool(pool),
        shape(problem),
        sequences(batch_rows_of(problem)),
        pieces(problem, shape, sequences, int(round_up(problem.query_rows * shape.heads, kPanel))) {}

  bool has(int branch) const { return problem.branches[branch].key.data != nullptr; }

  TileSource source(int branch, const Sequence& s) const {
    const Branch& b = problem.branches[branch];
    const int64_t ring = branch == kWindow ? problem.window_ring : 0;
    return {{b.key, problem.data_type, s.batch, s.group, ring},
            {b.value, problem.data_type, s.batch, s.group, ring},
            b.value.data != nullptr};
  }

  // bytes of keys and values that are read, roughly
  int64_t work() const {
    int64_t keys = 0;
    for (const Sequence& s : sequences) {
      const int64_t chosen = std::min(s.tokens, problem.slots * problem.select_block);
      keys += (has(kCompressed) ? s.blocks : 0) + (has(kSelected) ? s.rows * chosen : 0) +
              (has(kWindow) ? std::min(s.tokens, problem.window) : 0);
    }
    return keys * (shape.head_dim + shape.value_dim) * size_of(problem.data_type);
  }

  const Problem& problem;
  const ThreadPool& pool;
  Shape shape;
  std::vector<Sequence> sequences;  // [batch][group]
  Pieces pieces;
};

// The query of a chunk as right operand, and which keys its rows see
template <class Engine>
class DecodeQuery {
 public:
  using Element = typename Engine::Element;

  DecodeQuery(const Shape& shape, int columns)
      : shape_(shape),
        columns_(columns),
        staged_(round_up(columns, kPairRows) * shape.head_depth),
        panels_(int64_t(columns) * shape.head_depth),
        limits_(2 * columns) {}

  void read(const Problem& p, int branch, const ChunkRows& rows) {
    stage_chunk<Engine>(query_of(p, branch), p.data_type, rows, shape_.head_dim, shape_.head_depth,
                        staged_.get());
    Engine::pack_columns(staged_.get(), shape_.head_depth, columns_, shape_.head_depth, panels_.get());
    std::fill(low(), low() + columns_, 0);
    std::fill(high(), high() + columns_, kNoKey);
    fill_limits(p, branch, rows, low(), high());
    last_ = rows.count() - 1;
  }

  TileQuery<Engine> with(const LaneRows& rows) const { return {panels_.get(), {low(), high()}, rows}; }

  // does each row see all of the keys first .. end - 1?
  bool sees_all(int64_t first, int64_t end) const { return first >= low()[last_] && end <= high()[0]; }

  int64_t lowest() const { return low()[0]; }
  int64_t end() const { return high()[last_]; }

 private:
  int32_t* low() const { return limits_.get(); }
  int32_t* high() const { return limits_.get() + columns_; }

  const Shape& shape_;
  int columns_;
  int64_t last_ = 0;
  Buffer<Element> staged_, panels_;
  Buffer<int32_t> limits_;
};

// A piece of some groups
struct PieceTask {
  Piece piece;
  int64_t first_group, end_group;

  int64_t groups() const { return end_group - first_group; }
};

// Groups whose keys lie side by side are read together, others are tasks of their own
inline std::vector<PieceTask> piece_tasks(const DecodeCall& call) {
  std::vector<PieceTask> tasks;
  const int64_t groups = call.problem.groups;
  for (const Piece& piece : call.pieces.all()) {
    const Tensor& key = call.problem.branches[piece.branch].key;
    const int64_t together = key.head_stride < key.row_stride ? groups : 1;
    for (int64_t first = 0; first < groups; first += together)
      tasks.push_back({piece, first, first + together});
  }
  return tasks;
}

// One thread's memory for pieces of the compressed and the window branch
template <class Engine>
class PieceWorker {
 public:
  explicit PieceWorker(const DecodeCall& call)
      : call_(call), tiles_(call.shape, call.problem.data_type, call.pieces.columns()) {
    for (int64_t group = 0; group < call.problem.groups; ++group) {
      queries_.emplace_back(call.shape, call.pieces.columns());
      pooling_.emplace_back(call.pieces.weights(), call.pieces.columns());
    }
  }

  void run(const PieceTask& task) {
    for (int64_t group = task.first_group; group < task.end_group; ++group) begin(task.piece, group);
    const int64_t count = task.piece.tiles * task.groups();
    for (int64_t number = 0; number < count; ++number) attend(task, number, count);
    if (!pooled(task.piece)) return;
    for (int64_t group = task.first_group; group < task.end_group; ++group)
      pooling_[size_t(group)].end(task.piece.tiles);
  }

 private:
  const Sequence& sequence(const Piece& piece, int64_t group) const {
    return call_.sequences[size_t(piece.batch * call_.problem.groups + group)];
  }

  bool pooled(const Piece& piece) const { return call_.pieces.result(piece, 0).scores != nullptr; }

  void begin(const Piece& piece, int64_t group) {
    const Sequence& s = sequence(piece, group);
    const Chunk chunk{0, 0, int(s.rows)};
    queries_[size_t(group)].read(call_.problem, piece.branch, {s, chunk, call_.shape.heads});
    const PieceResult result = call_.pieces.result(piece, group);
    result.rows.reset();
    if (result.scores) pooling_[size_t(group)].begin(result.scores);
  }

  // One tile of one group
  struct Unit {
    int64_t index, group;
  };

  // a tile of each group, then the next of each
  static Unit unit(const PieceTask& task, int64_t number) {
    return {number / task.groups(), task.first_group + number % task.groups()};
  }

  // all groups see the same keys
  KeyTile keys(const Piece& piece, const Unit& unit) const {
    const DecodeQuery<Engine>& query = queries_[size_t(unit.group)];
    return KeyTile::run(piece.first + unit.index * kTileKeys, query.lowest(), query.end());
  }

  TileSource source(const Piece& piece, const Unit& unit) const {
    return call_.source(piece.branch, sequence(piece, unit.group));
  }

  void attend(const PieceTask& task, int64_t number, int64_t count) {
    const Piece& piece = task.piece;
    const Unit now = unit(task, number);
    if (number + 1 < count) {
      const Unit next = unit(task, number + 1);
      tiles_.expect(keys(piece, next), source(piece, next));
    } else {
      tiles_.expect_nothing();
    }
    const int64_t key = piece.first + now.index * kTileKeys;
    attend(piece, now, keys(piece, now), !queries_[size_t(now.group)].sees_all(key, key + kTileKeys));
  }

  void attend(const Piece& piece, const Unit& unit, const KeyTile& tile, bool masked) {
    const TileSource from = source(piece, unit);
    const PieceResult result = call_.pieces.result(piece, unit.group);
    const TileQuery<Engine> query = queries_[size_t(unit.group)].with(result.rows);
    if (piece.branch == kCompressed) {
      LanePooling* pooling = result.scores ? &pooling_[size_t(unit.group)] : nullptr;
      tiles_.template attend<true>(tile, masked, from, query, unit.index, pooling);
    } else {
      tiles_.template attend<!Engine::kRounds>(tile, masked, from, query, unit.index, nullptr);
    }
  }

  typename Engine::Session session_;
  const DecodeCall& call_;
  TileAttention<Engine> tiles_;
  std::vector<DecodeQuery<Engine>> queries_;  // [group]
  std::vector<LanePooling> pooling_;          // [group]
};

// One thread's memory for what is left of a token: its blocks, the selected branch, the gated sum
template <class Engine>
class TokenWorker {
 public:
  explicit TokenWorker(const DecodeCall& call)
      : call_(call),
        columns_(int(round_up(call.shape.heads, kPanel))),
        tiles_(call.shape, call.problem.data_type, columns_),
        query_(call.shape, columns_),
        join_(call.pieces.columns()),
        join_selected_(columns_),
        top_(call.problem.num_selected, call.problem.num_initial, call.problem.num_local),
        selected_(LaneRows::size(columns_, call.shape.value_depth)),
        reference_(call.shape.heads),
        total_(call.shape.heads * kLanes),
        sums_(call.shape.heads * call.shape.value_depth),
        whole_(call.shape.heads * call.shape.value_depth) {}

  void run(int64_t sequence, int64_t token) {
    const Problem& p = call_.problem;
    const Shape& shape = call_.shape;
    const Chunk chunk{sequence, token, 1};
    const ChunkRows rows{call_.sequences[size_t(sequence)], chunk, shape.heads};
    const SoftmaxRows state{reference_.get(), total_.get(), sums_.get(), shape.value_depth, nullptr, nullptr};
    std::fill(whole_.get(), whole_.get() + shape.heads * shape.value_depth, 0.0f);
    for (int branch = 0; branch < kBranches; ++branch) {
      if (!call_.has(branch)) continue;
      if (branch == kSelected) {
        attend_selected(rows, state);
      } else {
        join_pieces(branch, rows, state);
      }
      finish_branch<Engine>(p, shape, rows, branch, state, whole_.get());
    }
    if (p.out.data) write_whole(p, shape, rows, whole_.get());
  }

 private:
  void join_pieces(int branch, const ChunkRows& rows, const SoftmaxRows& state) {
    const Problem& p = call_.problem;
    const int first = int(rows.chunk.first_token) * rows.heads;
    call_.pieces.results(rows.sequence, branch, found_);
    join_.rows(found_, first, rows.heads, state);
    if (branch != kCompressed || !p.select) return;
    const int64_t own = rows.position(0) / p.select_block;
    join_.scores(found_, first, rows.heads, own + 1, scores_);
    top_.choose(scores_.data(), own, ids_of(p, rows.sequence, rows.chunk.first_token));
  }

  void attend_selected(const ChunkRows& rows, const SoftmaxRows& state) {
    const LaneRows lanes = LaneRows::in(selected_.get(), columns_, call_.shape.value_depth);
    lanes.reset();
    collect_pairs(call_.problem, rows, pairs_);
    if (!pairs_.empty()) {
      query_.read(call_.problem, kSelected, rows);
      attend_blocks(rows, lanes);
    }
    found_.assign(1, {lanes, nullptr, 0});
    join_selected_.rows(found_, 0, rows.heads, state);
  }

  void attend_blocks(const ChunkRows& rows, const LaneRows& lanes) {
    collect_tiles(rows);
    const TileSource source = call_.source(kSelected, rows.sequence);
    for (size_t index = 0; index < key_tiles_.size(); ++index) {
      const bool more = index + 1 < key_tiles_.size();
      if (more) {
        tiles_.expect(key_tiles_[index + 1], source);
      } else {
        tiles_.expect_nothing();
      }
      const KeyTile& tile = key_tiles_[index];
      tiles_.template attend<!Engine::kRounds>(tile, !tile.whole(), source, query_.with(lanes), 0, nullptr);
    }
  }

  // the keys of the token's blocks, as far as it sees them; small blocks share a tile
  void collect_tiles(const ChunkRows& rows) {
    const int64_t size = call_.problem.select_block, end = rows.position(0) + 1;
    key_tiles_.clear();
    int column = kTileKeys;
    for (const Pair& pair : pairs_) {
      for (int64_t key = pair.block * size; key < std::min((pair.block + 1) * size, end); ++key) {
        if (column == kTileKeys) {
          key_tiles_.emplace_back();
          column = 0;
        }
        key_tiles_.back().key[column++] = int32_t(key);
      }
    }
  }

  typename Engine::Session session_;
  const DecodeCall& call_;
  int columns_;  // of one token
  TileAttention<Engine> tiles_;
  DecodeQuery<Engine> query_;
  Join<Engine> join_, join_selected_;
  TopBlocks top_;
  Buffer<float> selected_, reference_, total_, sums_, whole_;
  std::vector<PieceResult> found_;
  std::vector<Pair> pairs_;
  std::vector<KeyTile> key_tiles_;
  std::vector<float> scores_;
};

template <class Engine>
Status decode(const Problem& p, const ThreadPool& pool) {
  const DecodeCall call(p, pool);
  const bool worth = call.work() >= kWorthThreadsBytes;
  const std::vector<PieceTask> pieces = piece_tasks(call);
  const auto count = int64_t(pieces.size());
  const Status status = run_tasks(
      pool, count, threads_if(pool, count, worth), [&] { return PieceWorker<Engine>(call); },
      [&](PieceWorker<Engine>& worker, int64_t task) { worker.run(pieces[size_t(task)]); });
  if (status != kOk) return status;
  const int64_t tokens = int64_t(call.sequences.size()) * p.query_rows;
  return run_tasks(
      pool, tokens, threads_if(pool, tokens, worth), [&] { return TokenWorker<Engine>(call); },
      [&](TokenWorker<Engine>& worker, int64_t task) {
        worker.run(task / p.query_rows, task % p.query_rows);
      });
}

}  // namespace trisparse::TRISPARSE_SET
