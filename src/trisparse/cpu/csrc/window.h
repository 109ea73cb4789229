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
    for_each_window_group(
        packed.tiling, state.low, state.high, rows.count(),
        [&](int64_t first, int64_t end, Range group, auto columns, auto masked) {
          RunGroup<Engine, kPrecise, NoHooks> run(shape, state, query, first, end, scratch_, hooks);
          run.attend(packed, base, group, true, columns, masked);
        });
  }

 private:
  RunScratch<Engine> scratch_;
};

}  // namespace trisparse::TRISPARSE_SET
