// The backward of a call: the query's gradient chunk by chunk, then keys' and values' tile by tile.
#pragma once
#include "backward_keys.h"
#include "backward_query.h"

namespace trisparse::TRISPARSE_SET {

// Tiles that share one packing of the rows that see them: fewer where there is little to share out among the
// threads
constexpr int64_t kMostKeyTiles = 4;

template <class Engine>
std::vector<KeyTask> key_tasks(const Call<Engine>& call, const PackedCall<Engine>& packed,
                               const std::vector<InvertedIds>& inverted, int64_t threads) {
  const Problem& p = call.problem;
  std::vector<KeyTask> tasks;
  std::vector<int64_t> work;
  for (int branch = 0; branch < kBranches; ++branch) {
    if (!call.has(branch)) continue;
    const Tiling& tiling = packed.branch(branch).tiling;
    int64_t all = 0;
    for (const Sequence& s : call.sequences) all += tiling.tiles(keys_of(branch, s).count);
    // the tiles of a block have its rows in common; other tiles are grouped while every thread has several
    // groups
    const int64_t step = branch == kSelected ? tiling.tiles_per_block()
                                             : std::clamp<int64_t>(all / (8 * threads), 1, kMostKeyTiles);
    for (size_t index = 0; index < call.sequences.size(); ++index) {
      const Sequence& s = call.sequences[index];
      const int64_t tiles = tiling.tiles(keys_of(branch, s).count);
      for (int64_t tile = 0; tile < tiles; tile += step) {
        int64_t rows = p.window;
        if (branch == kCompressed) rows = s.rows - s.rows * tile / tiles;
        if (branch == kSelected) {
          const size_t block = size_t(tile / step);
          rows = inverted[index].first[block + 1] - inverted[index].first[block];
        }
        const Range range{tile, std::min(tile + step, tiles)};
        tasks.push_back({branch, int64_t(index), range});
        work.push_back(rows * (range.end - range.begin));
      }
    }
  }
  return longest_first(tasks, work);
}

// Of a long call the chunks are taken in parts, so that only the keys near a part's rows are packed for the
// window branch
constexpr int64_t kParts = 8;
constexpr int64_t kPartChunks = 32;  // at least, for each thread: between parts threads wait for each other

template <class Engine>
Status query_pass(const Call<Engine>& call, PackedCall<Engine>& packed, const RowFacts* facts,
                  const std::vector<int64_t>& first_row) {
  const int64_t chunks = int64_t(call.chunks.size()), threads = call.threads(chunks);
  const bool packs = call.has(kWindow) && !packed.shared;
  const int64_t parts = packs ? std::clamp<int64_t>(chunks / (threads * kPartChunks), 1, kParts) : 1;
  for (int64_t part = 0; part < parts; ++part) {
    const Range range{chunks * part / parts, chunks * (part + 1) / parts};
    Status status = pack_window(call, kBackwardForms, range, packed);
    if (status != kOk) return status;
    status = run_tasks(
        call.pool, range.end - range.begin, threads,
        [&] { return QueryGradWorker<Engine>(call, packed, facts, first_row); },
        [&](QueryGradWorker<Engine>& worker, int64_t task) {
          worker.run(call.chunks[size_t(range.begin + task)]);
        });
    if (status != kOk) return status;
  }
  return kOk;
}

template <class Engine>
Status backward(const Problem& p, const ThreadPool& pool) {
  const Call<Engine> call(p, pool);
  const std::vector<int64_t> first_row = first_rows(call.sequences, call.shape.heads);
  RowFacts facts[kBranches];
  for (int branch = 0; branch < kBranches; ++branch) {
    if (call.has(branch)) facts[branch] = RowFacts(first_row.back());
  }
  PackedCall<Engine> packed(p, call.sequences, call.order);
  Status status = pack_compressed(call, kBackwardForms, packed);
  const bool few = call.has(kSelected) && few_rows(p, call.sequences);
  if (status == kOk) status = pack_selected(call, kBackwardForms, few, packed);
  if (status == kOk) status = query_pass(call, packed, facts, first_row);
  if (status != kOk) return status;
  std::vector<InvertedIds> inverted;
  if (call.has(kSelected)) {
    for (const Sequence& sequence : call.sequences) inverted.emplace_back(p, sequence);
  }
  uint32_t threads = 1;
  pool.get_num_threads(&threads);
  const std::vector<KeyTask> tasks = key_tasks(call, packed, inverted, threads);
  const int64_t most_tiles = std::max(kMostKeyTiles, packed.selected.tiling.tiles_per_block());
  return run_tasks(
      pool, int64_t(tasks.size()), call.threads(int64_t(tasks.size())),
      [&] { return KeyGradWorker<Engine>(call, packed, facts, first_row, inverted, most_tiles); },
      [&](KeyGradWorker<Engine>& worker, int64_t task) { worker.run(tasks[size_t(task)]); });
}

}  // namespace trisparse::TRISPARSE_SET
