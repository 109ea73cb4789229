// The forward of a call: pack keys and values, then chunk by chunk all its branches.
#pragma once
#include "compressed.h"
#include "decode.h"
#include "output.h"
#include "selected.h"
#include "window.h"

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

template <class Engine>
Status pack_compressed(const Call<Engine>& call, Forms forms, PackedCall<Engine>& packed) {
  if (!call.has(kCompressed)) return kOk;
  if (!call.problem.branches[kCompressed].value.data) forms = kScoreForms;
  const auto block_keys = [](const Sequence& s) { return keys_of(kCompressed, s); };
  const auto all = [](size_t, int64_t) { return true; };
  return pack_branch<Engine>(call.shape, call.problem.data_type, call.sequences,
                             call.problem.branches[kCompressed], forms, block_keys, all, call.pool,
                             packed.compressed);
}

// `few`: leave out blocks that nobody chose (then ids must be known)
template <class Engine>
Status pack_tokens(const Call<Engine>& call, Forms forms, bool few, PackedCall<Engine>& packed) {
  const Problem& p = call.problem;
  const auto all_keys = [](const Sequence& s) { return keys_of(kSelected, s); };
  // tokens before the first row's window are as good as absent, also where they are not finite
  const auto window_keys = [&](const Sequence& s) {
    return Keys{s.first_token, s.tokens, first_window_key(p, s), p.window_ring};
  };
  const auto in_window = [&](size_t index, int64_t tile) {
    return (tile + 1) * kTileKeys > first_window_key(p, call.sequences[index]);
  };
  Status status = kOk;
  if (call.has(kSelected)) {
    const auto blocks = few ? wanted_blocks(p, call.sequences) : std::vector<std::vector<uint8_t>>();
    const int64_t per_block = packed.selected.tiling.tiles_per_block();
    const auto wanted = [&](size_t index, int64_t tile) {
      return !few || blocks[index][size_t(tile / per_block)] || (packed.shared && in_window(index, tile));
    };
    status = pack_branch<Engine>(call.shape, call.problem.data_type, call.sequences, p.branches[kSelected],
                                 forms, all_keys, wanted, call.pool, packed.selected);
  }
  if (status == kOk && call.has(kWindow) && !packed.shared) {
    status = pack_branch<Engine>(call.shape, call.problem.data_type, call.sequences, p.branches[kWindow],
                                 forms, window_keys, in_window, call.pool, packed.own_window);
  }
  return status;
}

// One thread's memory, and the forward of one chunk in it
template <class Engine>
class ForwardWorker {
 public:
  using Element = typename Engine::Element;

  ForwardWorker(const Call<Engine>& call, const PackedCall<Engine>& packed)
      : call_(call),
        packed_(packed),
        compressed_(call.problem, call.order),
        selected_(call.problem, call.shape),
        query_(call.most_rows() * call.shape.head_depth),
        reference_(call.most_rows()),
        total_(call.most_rows() * kLanes),
        sums_(call.most_rows() * call.shape.value_depth),
        limits_(2 * call.most_rows()) {
    state_ = {reference_.get(), total_.get(), sums_.get(), call.shape.value_depth, low(), high()};
  }

  // Adds the branches `first` .. `last` of a chunk to `whole` [most_rows][value_depth]
  void attend(const Chunk& chunk, int first, int last, float* whole) {
    const ChunkRows rows = call_.rows(chunk);
    const Tensor* staged = nullptr;
    for (int branch = first; branch <= last; ++branch) {
      if (!call_.has(branch)) continue;
      const Tensor& query = query_of(call_.problem, branch);
      if (&query != staged) {
        stage_chunk<Engine>(query, call_.problem.data_type, rows, call_.shape.head_dim,
                            call_.shape.head_depth, query_.get());
        staged = &query;
      }
      state_.reset(round_up(rows.count(), kPairRows));
      attend_branch(branch, rows);
      finish_branch<Engine>(call_.problem, call_.shape, rows, branch, state_, whole);
    }
    if (call_.problem.out.data && last == kWindow) write_whole(call_.problem, call_.shape, rows, whole);
  }

 private:
  int32_t* low() const { return limits_.get(); }
  int32_t* high() const { return limits_.get() + call_.most_rows(); }

  void attend_branch(int branch, const ChunkRows& rows) {
    fill_limits(call_.problem, branch, rows, low(), high());
    if (branch == kCompressed) {
      const bool with_values = call_.problem.branches[kCompressed].value.data != nullptr;
      compressed_.attend(call_.shape, rows, packed_.compressed, query_.get(), state_, with_values);
    } else if (branch == kSelected) {
      selected_.attend(call_.shape, rows, packed_.selected, query_.get(), state_);
    } else {
      window_.attend(call_.shape, rows, packed_.window(), query_.get(), state_);
    }
  }

  typename Engine::Session session_;
  const Call<Engine>& call_;
  const PackedCall<Engine>& packed_;
  CompressedForward<Engine> compressed_;
  SelectedForward<Engine> selected_;
  WindowForward<Engine> window_;
  Buffer<Element> query_;
  Buffer<float> reference_, total_, sums_;
  Buffer<int32_t> limits_;
  SoftmaxRows state_;
};

// Chunks in parallel, branches `first` .. `last`. The sums of all chunks are kept where another pass will add
// to them.
template <class Engine>
Status forward_pass(const Call<Engine>& call, const PackedCall<Engine>& packed, int first, int last,
                    const Buffer<float>* kept) {
  const int64_t size = call.most_rows() * call.shape.value_depth;
  struct Worker {
    ForwardWorker<Engine> forward;
    Buffer<float> whole;
  };
  const auto make_worker = [&] { return Worker{{call, packed}, Buffer<float>(kept ? 0 : size)}; };
  const auto attend = [&](Worker& worker, int64_t task) {
    float* whole = kept ? kept->get() + task * size : worker.whole.get();
    if (first == kCompressed) std::fill(whole, whole + size, 0.0f);
    worker.forward.attend(call.chunks[size_t(task)], first, last, whole);
  };
  const int64_t tasks = int64_t(call.chunks.size());
  return run_tasks(call.pool, tasks, call.threads(tasks), make_worker, attend);
}

template <class Engine>
Status forward(const Problem& p, const ThreadPool& pool) {
  if (is_decoding(p)) return decode<Engine>(p, pool);
  const Call<Engine> call(p, pool);
  PackedCall<Engine> packed(p, call.sequences, call.order);
  Status status = pack_compressed(call, kForwardForms, packed);
  if (status != kOk) return status;
  const bool few = call.has(kSelected) && few_rows(p, call.sequences);
  if (!few || !p.select) {
    status = pack_tokens(call, kForwardForms, few, packed);
    return status == kOk ? forward_pass(call, packed, kCompressed, kWindow, nullptr) : status;
  }
  // few rows, as in decoding: select first, then pack what was selected
  const Buffer<float> whole(int64_t(call.chunks.size()) * call.most_rows() * call.shape.value_depth);
  status = forward_pass(call, packed, kCompressed, kCompressed, &whole);
  if (status == kOk) status = pack_tokens(call, kForwardForms, true, packed);
  return status == kOk ? forward_pass(call, packed, kSelected, kWindow, &whole) : status;
}

}  // namespace trisparse::TRISPARSE_SET
