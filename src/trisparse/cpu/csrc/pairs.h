// Which rows of a chunk chose which block: the ids of its tokens, sorted by block.
#pragma once
#include <algorithm>
#include <vector>

#include "chunk.h"

namespace trisparse::TRISPARSE_SET {

struct Pair {
  int32_t block;
  int32_t token;  // of the chunk

  bool operator<(const Pair& other) const {
    return block != other.block ? block < other.block : token < other.token;
  }
  bool operator==(const Pair& other) const { return block == other.block && token == other.token; }
};

// Usable ids only, each once (spec 5): block <= own, so that none is past the end or in the future
inline void collect_pairs(const Problem& p, const ChunkRows& rows, std::vector<Pair>& pairs) {
  pairs.clear();
  for (int token = 0; token < rows.chunk.tokens; ++token) {
    const int64_t own = (rows.chunk.position(rows.sequence) + token) / p.select_block;
    const int32_t* ids = ids_of(p, rows.sequence, rows.chunk.first_token + token);
    for (int64_t slot = 0; slot < p.slots; ++slot) {
      if (ids[slot] >= 0 && ids[slot] <= own) pairs.push_back({ids[slot], token});
    }
  }
  std::sort(pairs.begin(), pairs.end());
  pairs.erase(std::unique(pairs.begin(), pairs.end()), pairs.end());
}

}  // namespace trisparse::TRISPARSE_SET
