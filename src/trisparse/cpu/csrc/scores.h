// The two kinds of product: scores, and sums over keys or rows.
#pragma once
#include "matrices.h"

namespace trisparse::TRISPARSE_SET {

// out[tile]: [16][columns]; left[tile]: [16][depth]; `right`: keys (or rows) as columns
template <class Engine>
inline void tile_scores(int tiles, const typename Engine::Element* const* left, int depth,
                        const typename Engine::Element* right, float* out, int columns = kTileKeys) {
  Matrices<typename Engine::Element> m{};
  m.tiles = tiles;
  for (int tile = 0; tile < tiles; ++tile) {
    m.left[tile] = left[tile];
    m.out[tile] = out + tile * kTileRows * columns;
  }
  m.out_stride = columns;
  m.left_stride = depth;
  m.right = right;
  m.panel_stride = int64_t(depth) * kPanel;
  m.panels = columns / kPanel;
  m.depth = depth;
  m.runs = 1;
  Engine::multiply(m);
}

// out[tile] [16][features] += left[tile] ([runs][16][64]) x `runs` tiles of 64 keys as depth; rows of `out`
// are `out_stride` apart, by default `features`
template <class Engine>
inline void add_product(int tiles, const typename Engine::Element* const* left,
                        const typename Engine::Element* right, int runs, int features, float* const* out,
                        ptrdiff_t out_stride = 0) {
  Matrices<typename Engine::Element> m{};
  m.tiles = tiles;
  for (int tile = 0; tile < tiles; ++tile) {
    m.left[tile] = left[tile];
    m.out[tile] = out[tile];
  }
  m.out_stride = out_stride ? out_stride : features;
  m.left_stride = kTileKeys;
  m.left_run = kTileRows * kTileKeys;
  m.right = right;
  m.panel_stride = kTileKeys * kPanel;
  m.right_run = int64_t(features) * kTileKeys;
  m.panels = features / kPanel;
  m.depth = kTileKeys;
  m.runs = runs;
  m.add = true;
  Engine::multiply(m);
}

}  // namespace trisparse::TRISPARSE_SET
