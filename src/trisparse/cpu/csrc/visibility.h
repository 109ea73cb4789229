// Which keys the rows of a chunk see, branch by branch: low <= key < high.
#pragma once
#include <utility>

#include "chunk.h"

namespace trisparse::TRISPARSE_SET {

struct Limits {
  int64_t low, high;
};

// compressed blocks that end at or before `position` (spec 1), raw tokens up to it (spec 5), the last
// `window` of them (spec 6)
inline Limits visible_keys(const Problem& p, int branch, int64_t position) {
  if (branch == kCompressed) return {0, num_compressed(p, position + 1)};
  if (branch == kSelected) return {0, position + 1};
  return {std::max<int64_t>(0, position - p.window + 1), position + 1};
}

inline void fill_limits(const Problem& p, int branch, const ChunkRows& rows, int32_t* low, int32_t* high) {
  for (int64_t row = 0; row < rows.count(); ++row) {
    const Limits limits = visible_keys(p, branch, rows.position(row));
    low[row] = int32_t(limits.low);
    high[row] = int32_t(limits.high);
  }
}

// Positions of a tile's columns, those past the last key in everybody's future
class ShortColumns {
 public:
  const int32_t* of(int64_t count) {
    for (int column = 0; column < kTileKeys; ++column) keys_[column] = column < count ? column : INT32_MAX;
    return keys_;
  }

 private:
  int32_t keys_[kTileKeys];
};

}  // namespace trisparse::TRISPARSE_SET
