// Gradients of keys and values, a few tiles of keys at a time, over all rows that see them: no two threads
// ever write to the same place, and the order of every sum is fixed.
//
// Everything is transposed: scores are [keys, rows], so that probabilities are at once the left operands of
// the two sums over rows. 32 rows are a block, eight blocks a batch whose sums stay in registers.
#pragma once
#include "call.h"
#include "inverted.h"
#include "row_facts.h"

namespace trisparse::TRISPARSE_SET {

constexpr int kBlockRows = 32;
constexpr int kBatchBlocks = 8;
constexpr int kRowVectors = kBlockRows / kLanes;

// Neighbouring tiles of one branch of one sequence
struct KeyTask {
  int branch;
  int64_t sequence;
  Range tiles;
};

// Up to 256 rows as right operands, with their facts
template <class Engine>
struct RowBatch {
  using Element = typename Engine::Element;

  explicit RowBatch(const Shape& shape)
      : query_columns(kRows * shape.head_depth),
        query_depth(kRows * shape.head_depth),
        grad_columns(kRows * shape.value_depth),
        grad_depth(kRows * shape.value_depth) {}

  static constexpr int64_t kRows = kBatchBlocks * kBlockRows;
  Buffer<Element> query_columns, query_depth, grad_columns, grad_depth;
  alignas(kCacheLine) float log_sum_exp[kRows], delta[kRows], gate[kRows];
  alignas(kCacheLine) int32_t low[kRows], high[kRows];
  int blocks = 0;
};

template <class Engine>
class KeyGradWorker {
 public:
  using Element = typename Engine::Element;

  KeyGradWorker(const Call<Engine>& call, const PackedCall<Engine>& packed, const RowFacts* facts,
                const std::vector<int64_t>& first_row, const std::vector<InvertedIds>& inverted,
                int64_t most_tiles)
      : call_(call),
        packed_(packed),
        facts_(facts),
        first_row_(first_row),
        inverted_(inverted),
        shape_(call.shape),
        batch_(call.shape),
        rows_(kBlockRows * std::max(shape_.head_depth, shape_.value_depth)),
        keys_(most_tiles * kTileKeys * shape_.head_depth),
        values_(most_tiles * kTileKeys * shape_.value_depth),
        grad_keys_(most_tiles * kTileKeys * shape_.head_depth),
        grad_values_(most_tiles * kTileKeys * shape_.value_depth) {}

  void run(const KeyTask& task) {
    const Sequence& sequence = call_.sequences[size_t(task.sequence)];
    begin(task, sequence);
    if (task.branch == kSelected) {
      const int64_t block = task.tiles.begin / packed_.selected.tiling.tiles_per_block();
      const InvertedIds& ids = inverted_[size_t(task.sequence)];
      const int32_t* tokens = ids.tokens.data() + ids.first[size_t(block)];
      const int64_t rows = (ids.first[size_t(block) + 1] - ids.first[size_t(block)]) * shape_.heads;
      over_rows(task, sequence, {0, rows}, tokens);
    } else {
      over_rows(task, sequence, visible_rows(task, sequence), nullptr);
    }
    finish(task, sequence);
  }

 private:
  const Tiling& tiling(int branch) const { return packed_.branch(branch).tiling; }

  // The rows of a sequence that may see some key of the task, in batches counted from row 0: what is added to
  // what must not depend on how many tiles a task has
  Range visible_rows(const KeyTask& task, const Sequence& s) const {
    const Problem& p = call_.problem;
    const Keys keys = keys_of(task.branch, s);
    int64_t lowest = INT64_MAX, highest = 0;
    for (int64_t tile = task.tiles.begin; tile < task.tiles.end; ++tile) {
      const Span span = tiling(task.branch).span(tile, keys.count);
      for (int column = 0; column < kTileKeys; ++column) {
        if (span.key[column] >= span.count) continue;
        lowest = std::min(lowest, span.first + span.key[column]);
        highest = std::max(highest, span.first + span.key[column]);
      }
    }
    if (lowest == INT64_MAX) return {0, 0};
    const bool raw = task.branch == kWindow;
    const int64_t first = raw ? lowest : lowest * p.compress_stride + p.compress_block - 1;
    const int64_t end = raw ? highest + p.window : s.start + s.rows;
    const int64_t begin_row = std::clamp<int64_t>(first - s.start, 0, s.rows) * shape_.heads;
    const int64_t end_row = std::clamp<int64_t>(end - s.start, 0, s.rows) * shape_.heads;
    return {begin_row / RowBatch<Engine>::kRows * RowBatch<Engine>::kRows, end_row};
  }

  void begin(const KeyTask& task, const Sequence& sequence) {
    const Branch& branch = call_.problem.branches[task.branch];
    const Keys keys = keys_of(task.branch, sequence);
    for (int64_t tile = task.tiles.begin; tile < task.tiles.end; ++tile) {
      const Span span = tiling(task.branch).span(tile, keys.count);
      const int64_t index = (tile - task.tiles.begin) * kTileKeys;
      stage_tile<Engine>(branch.key, call_.problem.data_type, sequence, keys.first_row, span, shape_.head_dim,
                         shape_.head_depth, keys_.get() + index * shape_.head_depth);
      stage_tile<Engine>(branch.value, call_.problem.data_type, sequence, keys.first_row, span,
                         shape_.value_dim, shape_.value_depth, values_.get() + index * shape_.value_depth);
    }
    const int64_t count = (task.tiles.end - task.tiles.begin) * kTileKeys;
    std::fill(grad_keys_.get(), grad_keys_.get() + count * shape_.head_depth, 0.0f);
    std::fill(grad_values_.get(), grad_values_.get() + count * shape_.value_depth, 0.0f);
  }

  // Row number i of those that see the keys is row i of the sequence, or that of the i-th head of `tokens`
  void over_rows(const KeyTask& task, const Sequence& sequence, Range range, const int32_t* tokens) {
    const Keys keys = keys_of(task.branch, sequence);
    for (int64_t first = range.begin; first < range.end; first += RowBatch<Engine>::kRows) {
      const int64_t end = std::min(first + RowBatch<Engine>::kRows, range.end);
      load_batch(task, sequence, first, end, tokens);
      for (int64_t tile = task.tiles.begin; tile < task.tiles.end; ++tile) {
        add_tile(tiling(task.branch).span(tile, keys.count), int(tile - task.tiles.begin));
      }
    }
  }

  void load_batch(const KeyTask& task, const Sequence& s, int64_t first, int64_t end, const int32_t* tokens) {
    const auto row_of_index = [&](int64_t row) {
      return tokens ? tokens[row / shape_.heads] * int64_t(shape_.heads) + row % shape_.heads : row;
    };
    const RowFacts& facts = facts_[task.branch];
    const int32_t type = call_.problem.data_type;
    batch_.blocks = int((end - first + kBlockRows - 1) / kBlockRows);
    for (int block = 0; block < batch_.blocks; ++block) {
      const int64_t begin = first + block * kBlockRows;
      const auto put = [&](const Tensor& tensor, int count, int padded, Element* columns, Element* depth) {
        for (int i = 0; i < kBlockRows; ++i) {
          Element* to = rows_.get() + i * padded;
          if (begin + i < end) {
            const int64_t row = row_of_index(begin + i);
            const int64_t head = s.group * shape_.heads + row % shape_.heads;
            stage_row<Engine>(row_of(tensor, type, s.batch, s.first_row + row / shape_.heads, head), type,
                              count, padded, to);
          } else {
            std::fill(to, to + padded, Element(0));
          }
        }
        Engine::pack_columns(rows_.get(), padded, kBlockRows, padded, columns + block * kBlockRows * padded);
        Engine::pack_rows(rows_.get(), padded, kBlockRows, padded, depth + block * kBlockRows * padded);
      };
      put(call_.problem.query, shape_.head_dim, shape_.head_depth, batch_.query_columns.get(),
          batch_.query_depth.get());
      put(call_.problem.grad_out, shape_.value_dim, shape_.value_depth, batch_.grad_columns.get(),
          batch_.grad_depth.get());
      for (int i = 0; i < kBlockRows; ++i) {
        load_facts(task, s, facts, begin + i < end ? row_of_index(begin + i) : -1, block * kBlockRows + i);
      }
    }
  }

  // row -1: none; its probabilities are 0
  void load_facts(const KeyTask& task, const Sequence& s, const RowFacts& facts, int64_t row, int index) {
    const int64_t place = row < 0 ? 0 : first_row_[size_t(task.sequence)] + row;
    batch_.log_sum_exp[index] = row < 0 ? kInfinity : facts.log_sum_exp[place];
    batch_.delta[index] = row < 0 ? 0.0f : facts.delta[place];
    batch_.gate[index] = row < 0 ? 0.0f : facts.gate[place];
    const Limits limits =
        row < 0 ? Limits{0, 0} : visible_keys(call_.problem, task.branch, s.start + row / shape_.heads);
    batch_.low[index] = int32_t(limits.low);
    batch_.high[index] = int32_t(limits.high);
  }

  void add_tile(const Span& span, int index) {
    const Element* keys = keys_.get() + int64_t(index) * kTileKeys * shape_.head_depth;
    const Element* values = values_.get() + int64_t(index) * kTileKeys * shape_.value_depth;
    for (int block = 0; block < batch_.blocks; ++block) {
      transposed_product(keys, shape_.head_depth,
                         batch_.query_columns.get() + int64_t(block) * kBlockRows * shape_.head_depth,
                         scores_.get());
      transposed_product(values, shape_.value_depth,
                         batch_.grad_columns.get() + int64_t(block) * kBlockRows * shape_.value_depth,
                         products_.get());
      weigh(span, block);
    }
    add_rows(weights_.get(), batch_.grad_depth.get(), shape_.value_depth,
             grad_values_.get() + int64_t(index) * kTileKeys * shape_.value_depth);
    add_rows(gradients_.get(), batch_.query_depth.get(), shape_.head_depth,
             grad_keys_.get() + int64_t(index) * kTileKeys * shape_.head_depth);
  }

  // out [64][32] = left [64][depth] x right (32 rows as columns)
  static void transposed_product(const Element* left, int depth, const Element* right, float* out) {
    for (int half = 0; half < kTileKeys; half += kPairRows) {
      const Element* tiles[2] = {left + int64_t(half) * depth, left + int64_t(half + kTileRows) * depth};
      tile_scores<Engine>(2, tiles, depth, right, out + half * kBlockRows, kBlockRows);
    }
  }

  // Is the log-sum-exp of some row of the batch from `first` on coarse, of those of one block?
  bool is_coarse(int first) const {
    const float* begin = batch_.log_sum_exp + first;
    const auto one = [](float log_sum_exp) { return Exponent<Engine>::is_coarse(log_sum_exp); };
    return Engine::kRounds && std::any_of(begin, begin + kBlockRows, one);
  }

  // Probabilities times gate, and gradients of scores, of 64 keys for one block of rows
  void weigh(const Span& span, int block) {
    constexpr bool precise = !Engine::kRounds;
    const Exponent<Engine> exponent(shape_);
    const int first = block * kBlockRows;
    const bool coarse = is_coarse(first);
    for (int column = 0; column < kTileKeys; ++column) {
      const Ints key = splat(int32_t(span.first + span.key[column]));
      Floats weights[kRowVectors], gradients[kRowVectors];
      for (int v = 0; v < kRowVectors; ++v) {
        const int row = first + v * kLanes;
        const Ints visible =
            (load_as<Ints>(batch_.low + row) <= key) & (key < load_as<Ints>(batch_.high + row));
        const Floats dots = load(scores_.get() + column * kBlockRows + v * kLanes);
        const Floats log_sum_exp = load(batch_.log_sum_exp + row);
        Floats x = exponent(dots, log_sum_exp);
        if (__builtin_expect(coarse, 0)) x = exponent.of_probability(dots, log_sum_exp);
        const Floats p = exp2<precise>(x), gate = load(batch_.gate + row);
        const Floats product = load(products_.get() + column * kBlockRows + v * kLanes);
        // selecting, not multiplying by 0: hidden scores and products may be infinite or NaN
        weights[v] = select(visible, p * gate, Floats{});
        gradients[v] = select(visible, p * (gate * product - load(batch_.delta + row)), Floats{});
      }
      const int64_t place = (int64_t(block) * kTileKeys + column) * kBlockRows;
      Engine::store_elements(weights_.get() + place, weights, kRowVectors);
      Engine::store_elements(gradients_.get() + place, gradients, kRowVectors);
    }
  }

  // out [64][features] += left ([blocks][64][32]) x right (blocks of 32 rows as depth)
  void add_rows(const Element* left, const Element* right, int features, float* out) const {
    for (int half = 0; half < kTileKeys; half += kPairRows) {
      Matrices<Element> m{};
      m.tiles = 2;
      for (int tile = 0; tile < 2; ++tile) {
        m.left[tile] = left + (half + tile * kTileRows) * kBlockRows;
        m.out[tile] = out + int64_t(half + tile * kTileRows) * features;
      }
      m.out_stride = features;
      m.left_stride = kBlockRows;
      m.left_run = kTileKeys * kBlockRows;
      m.right = right;
      m.panel_stride = kBlockRows * kPanel;
      m.right_run = int64_t(kBlockRows) * features;
      m.panels = features / kPanel;
      m.depth = kBlockRows;
      m.runs = batch_.blocks;
      m.add = true;
      Engine::multiply(m);
    }
  }

  void finish(const KeyTask& task, const Sequence& s) const {
    const int32_t type = call_.problem.data_type;
    const Branch& branch = call_.problem.branches[task.branch];
    const Keys keys = keys_of(task.branch, s);
    for (int64_t tile = task.tiles.begin; tile < task.tiles.end; ++tile) {
      const Span span = tiling(task.branch).span(tile, keys.count);
      for (int column = 0; column < kTileKeys; ++column) {
        if (span.key[column] >= span.count) continue;
        const int64_t row = keys.first_row + span.first + span.key[column];
        const int64_t index = (tile - task.tiles.begin) * kTileKeys + column;
        write_numbers(grad_keys_.get() + index * shape_.head_depth, shape_.scale, shape_.head_dim, type,
                      row_of(branch.grad_key, type, s.batch, row, s.group));
        write_numbers(grad_values_.get() + index * shape_.value_depth, 1.0f, shape_.value_dim, type,
                      row_of(branch.grad_value, type, s.batch, row, s.group));
      }
    }
  }

  typename Engine::Session session_;
  const Call<Engine>& call_;
  const PackedCall<Engine>& packed_;
  const RowFacts* facts_;
  const std::vector<int64_t>& first_row_;
  const std::vector<InvertedIds>& inverted_;
  const Shape& shape_;
  RowBatch<Engine> batch_;
  Buffer<Element> rows_, keys_, values_;
  Buffer<float> grad_keys_, grad_values_;
  Buffer<float> scores_{kTileKeys * kBlockRows}, products_{kTileKeys * kBlockRows};
  Buffer<Element> weights_{kBatchBlocks * kTileKeys * kBlockRows},
      gradients_{kBatchBlocks * kTileKeys * kBlockRows};
};

}  // namespace trisparse::TRISPARSE_SET
