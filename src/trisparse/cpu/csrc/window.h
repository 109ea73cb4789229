// The window branch of a chunk: exactly `window` tokens per row, the row's own included (spec 6).
#pragma once
#include "chunk.h"
#include "run.h"

namespace trisparse::TRISPARSE_SET {

template <class Engine>
class WindowForward {
 public:
  using Element = typename Engine::Element;
  static constexpr bool kPrecise = !Engine::kRounds;

  void attend(const Shape& shape, const ChunkRows& rows, const PackedBranch<Engine>& packed,
              const Element* query, const SoftmaxRows& state) {
    const int64_t base = packed.first_tile[size_t(rows.chunk.sequence)];
    NoHooks hooks;
    for (int64_t first = 0; first < rows.count(); first += kPairRows) {
      const int64_t end = std::min(first + kPairRows, rows.count());
      RunGroup<Engine, kPrecise, NoHooks> group(shape, state, query, first, end, scratch_, hooks);
      // limits of the first row are the lowest, those of the last the highest
      const int64_t low_first = state.low[first], low_last = state.low[end - 1];
      const int64_t high_first = state.high[first], high_last = state.high[end - 1];
      const int64_t tiles_end = (high_last + kTileKeys - 1) / kTileKeys;
      for (TileRange range = group_from(low_first / kTileKeys, tiles_end); range.begin < tiles_end;
           range = group_from(range.end, tiles_end)) {
        group.attend(
            packed, base, range, true,
            [&](int64_t t) {
              return Columns{packed.tiling.identity(), t * kTileKeys};
            },
            [&](int64_t t) { return t * kTileKeys < low_last || (t + 1) * kTileKeys > high_first; });
      }
    }
  }

 private:
  RunScratch<Engine> scratch_;
};

}  // namespace trisparse::TRISPARSE_SET
