// The selection turned around: for every block of a sequence, the tokens that chose it, ascending.
#pragma once
#include <algorithm>
#include <vector>

#include "sequence.h"

namespace trisparse::TRISPARSE_SET {

struct InvertedIds {
  std::vector<int64_t> first;   // [blocks + 1]
  std::vector<int32_t> tokens;  // of block b: first[b] .. first[b + 1] - 1

  // A counting sort: stable, so that the order of every sum over tokens is fixed
  InvertedIds(const Problem& p, const Sequence& sequence) {
    const int64_t blocks = (sequence.tokens + p.select_block - 1) / p.select_block;
    first.assign(size_t(blocks) + 1, 0);
    for_each_choice(p, sequence, [&](int64_t, int32_t block) { ++first[size_t(block) + 1]; });
    for (size_t block = 0; block < size_t(blocks); ++block) first[block + 1] += first[block];
    tokens.resize(size_t(first.back()));
    std::vector<int64_t> next(first.begin(), first.end());
    for_each_choice(p, sequence, [&](int64_t token, int32_t block) {
      tokens[size_t(next[size_t(block)]++)] = int32_t(token);
    });
  }

 private:
  // usable ids only, each once per token (spec 5)
  template <class Function>
  static void for_each_choice(const Problem& p, const Sequence& sequence, Function function) {
    std::vector<int32_t> chosen;
    for (int64_t token = 0; token < sequence.rows; ++token) {
      const int64_t own = (sequence.start + token) / p.select_block;
      const int32_t* ids = ids_of(p, sequence, token);
      chosen.clear();
      for (int64_t slot = 0; slot < p.slots; ++slot) {
        if (ids[slot] >= 0 && ids[slot] <= own) chosen.push_back(ids[slot]);
      }
      if (!std::is_sorted(chosen.begin(), chosen.end())) std::sort(chosen.begin(), chosen.end());
      chosen.erase(std::unique(chosen.begin(), chosen.end()), chosen.end());
      for (const int32_t block : chosen) function(token, block);
    }
  }
};

}  // namespace trisparse::TRISPARSE_SET
