// Eq. 9: a row's compressed probabilities summed by selection block, while they are in registers.
//
// With r = l'/d and k = l/d, the p-th of a block's r own keys counts min(k, r - p) times for that block and
// the rest of k times for the next one. Columns are ordered (see KeyOrder) so that lane j of a vector is
// block j of 16.
#pragma once
#include <vector>

#include "matrices.h"
#include "sequence.h"
#include "vector.h"

namespace trisparse::TRISPARSE_SET {

// By phase p: what a key counts for its own block and for the next one
struct PoolingWeights {
  explicit PoolingWeights(const Problem& p) : phases(int(p.select_block / p.compress_stride)) {
    const int strides = int(p.compress_block / p.compress_stride);
    for (int phase = 0; phase < phases; ++phase) {
      own.push_back(float(std::min(strides, phases - phase)));
      next.push_back(float(strides) - own.back());
    }
  }

  int phases;
  std::vector<float> own, next;
};

class Pooling {
 public:
  Pooling(const Problem& p, int64_t most_tiles, int64_t most_rows)
      : weights_(p),
        phases_(weights_.phases),
        stride_(round_up(most_tiles * kTileKeys / kPanel, phases_) / phases_ * kPanel + 2 * kPanel),
        scores_(most_rows * stride_),
        next_(most_rows * kPanel) {}

  void reset(int64_t rows) {
    for (int64_t row = 0; row < rows; ++row) std::fill(scores(row), scores(row) + kPanel, 0.0f);
  }

  // Tiles of a row must come in order, from the first
  void add(int64_t tile, int64_t row, const Floats* p) {
    if (phases_ == 4) {
      add_tile<4>(tile, row, p);
    } else {
      add_tile<0>(tile, row, p);
    }
  }

  [[gnu::noinline, gnu::cold]] void rescale(int64_t row, int64_t tiles, float factor) {
    const int64_t count = blocks(tiles);
    for (int64_t block = 0; block < count; ++block) scores(row)[block] *= factor;
    for (int lane = 0; lane < kPanel; ++lane) next(row)[lane] *= factor;
  }

  // scores of blocks 0 .. blocks(tiles) - 1, not yet divided by the row's total
  float* scores(int64_t row) const { return scores_.get() + row * stride_; }

  // how many scores exist after `tiles` tiles
  int64_t blocks(int64_t tiles) const {
    return tiles == 0 ? kPanel : (tiles * (kTileKeys / kPanel) + phases_ - 1) / phases_ * kPanel + kPanel;
  }

 private:
  static constexpr int kVectors = kPanel / kLanes;

  float* next(int64_t row) const { return next_.get() + row * kPanel; }

  template <int known_phases>
  void add_tile(int64_t tile, int64_t row, const Floats* p) {
    const int phases = known_phases ? known_phases : phases_;
    const int64_t first = tile * (kTileKeys / kPanel);
    Floats own_sum[kVectors], next_sum[kVectors];
    for (int index = 0; index < kTileKeys / kPanel; ++index) {
      const int phase = int((first + index) % phases);
      float* own = scores(row) + (first + index) / phases * kPanel;
      if (index == 0 || phase == 0) {
        for (int v = 0; v < kVectors; ++v) {
          own_sum[v] = load(own + v * kLanes);
          next_sum[v] = phase == 0 ? Floats{} : load(next(row) + v * kLanes);
        }
      }
      for (int v = 0; v < kVectors; ++v) {
        own_sum[v] += p[index * kVectors + v] * weights_.own[size_t(phase)];
        next_sum[v] += p[index * kVectors + v] * weights_.next[size_t(phase)];
      }
      if (phase == phases - 1) {
        finish(own, own_sum, next_sum);
      } else if (index + 1 == kTileKeys / kPanel) {
        finish_later(own, row, own_sum, next_sum);
      }
    }
  }

  // What 16 blocks have for their next ones moves up by a lane; the last has it for the first of the next 16
  static void finish(float* own, const Floats* own_sum, const Floats* next_sum) {
#if defined(__AVX512F__)
    const __m512i moved = (__m512i)next_sum[0], nothing = _mm512_setzero_si512();
    store(own, own_sum[0] + (Floats)_mm512_alignr_epi32(moved, nothing, 15));
    store(own + kPanel, (Floats)_mm512_alignr_epi32(nothing, moved, 15));
#else
    float line[1 + kPanel] = {};
    for (int v = 0; v < kVectors; ++v) store(line + 1 + v * kLanes, next_sum[v]);
    for (int v = 0; v < kVectors; ++v) store(own + v * kLanes, own_sum[v] + load(line + v * kLanes));
    std::fill(own + kPanel, own + 2 * kPanel, 0.0f);
    own[kPanel] = line[kPanel];
#endif
  }

  // a run of 16 blocks that goes on in the next tile
  void finish_later(float* own, int64_t row, const Floats* own_sum, const Floats* next_sum) {
    for (int v = 0; v < kVectors; ++v) {
      store(own + v * kLanes, own_sum[v]);
      store(next(row) + v * kLanes, next_sum[v]);
    }
    std::fill(own + kPanel, own + 2 * kPanel, 0.0f);
  }

  PoolingWeights weights_;
  int phases_;
  int64_t stride_;
  Buffer<float> scores_, next_;
};

}  // namespace trisparse::TRISPARSE_SET
