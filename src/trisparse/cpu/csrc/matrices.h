// What a matrix product is given, the same for every engine.
//
// Left operands are plain rows. Right operands are packed in panels of 16 columns, all depths of a panel
// together; how a panel orders its numbers is the engine's own affair. A product may run over several pieces
// of depth (`runs`), whose sums stay in registers from one piece to the next.
#pragma once
#include <cstddef>
#include <cstdint>

#include "buffer.h"

namespace trisparse::TRISPARSE_SET {

constexpr int kTileRows = 16;   // rows of one tile of queries: all heads of a token, or several tokens' heads
constexpr int kPanel = 16;      // columns of a panel
constexpr int kTileKeys = 64;   // keys of one tile
constexpr int kDepthUnit = 32;  // depths are padded with zeros to a multiple of this
constexpr int kPairRows = 2 * kTileRows;

template <class Element>
struct Matrices {
  int tiles;      // 1 or 2 tiles of 16 rows
  float* out[2];  // per tile: [16][out_stride]
  ptrdiff_t out_stride;
  const Element* left[2];  // per tile: [16][left_stride], a piece `left_run` further per run
  ptrdiff_t left_stride, left_run;
  const Element* right;  // a panel every `panel_stride`, a piece every `right_run`
  ptrdiff_t panel_stride, right_run;
  int panels, depth, runs;
  bool add;  // to what `out` holds
};

}  // namespace trisparse::TRISPARSE_SET
