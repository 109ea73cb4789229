// Eq. 11-12: which blocks a row takes, from their scores.
#pragma once
#include <algorithm>
#include <vector>

#include "vector.h"

namespace trisparse::TRISPARSE_SET {

class TopBlocks {
 public:
  TopBlocks(int64_t num_selected, int64_t num_initial, int64_t num_local)
      : num_selected_(num_selected), num_initial_(num_initial), num_local_(num_local) {}

  // Fills `ids` [num_selected], ascending, -1 where there are too few candidates 0 .. own. NaN ranks below
  // every number; ties go to the lower block (spec 4). Scores are sums of probabilities, never negative.
  // A row that takes no part has its own block below 0, and no candidates.
  void choose(const float* scores, int64_t own, int32_t* ids) {
    own = std::max<int64_t>(own, -1);
    chosen_.clear();
    for (int64_t block = 0; block <= own && block < num_initial_; ++block) chosen_.push_back(int32_t(block));
    const int64_t local = std::max(own - num_local_ + 1, int64_t(chosen_.size()));
    for (int64_t block = local; block <= own; ++block) chosen_.push_back(int32_t(block));
    const int64_t free = num_selected_ - int64_t(chosen_.size());
    if (free > 0) take_best(scores, std::min(num_initial_, own + 1), local, free);
    std::sort(chosen_.begin(), chosen_.end());
    std::fill(std::copy(chosen_.begin(), chosen_.end(), ids), ids + num_selected_, -1);
  }

 private:
  struct Ranked {
    float score;
    int32_t block;
  };

  static float rank(float score) { return score >= 0.0f ? score : -1.0f; }

  // the best `count` of blocks begin .. end - 1, kept in order, best first
  void take_best(const float* scores, int64_t begin, int64_t end, int64_t count) {
    best_.clear();
    int64_t block = begin;
    for (; block < end && int64_t(best_.size()) < count; ++block) insert(rank(scores[block]), int32_t(block));
    while (block < end) {
      const float bound = best_.empty() ? kInfinity : best_.back().score;
      // most blocks are below the bound: look at a register of them at once
      while (block + kLanes <= end && !any_above(load(scores + block), bound)) block += kLanes;
      const int64_t stop = std::min(block + kLanes, end);
      for (; block < stop; ++block) {
        if (rank(scores[block]) > best_.back().score) {
          best_.pop_back();
          insert(rank(scores[block]), int32_t(block));
        }
      }
    }
    for (const Ranked& each : best_) chosen_.push_back(each.block);
  }

  // behind those that score the same: they have lower indices
  void insert(float score, int32_t block) {
    const auto place = std::upper_bound(best_.begin(), best_.end(), score,
                                        [](float value, const Ranked& each) { return value > each.score; });
    best_.insert(place, Ranked{score, block});
  }

  int64_t num_selected_, num_initial_, num_local_;
  std::vector<int32_t> chosen_;
  std::vector<Ranked> best_;
};

}  // namespace trisparse::TRISPARSE_SET
