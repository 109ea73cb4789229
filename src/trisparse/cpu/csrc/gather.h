// Tiles of rows that need not be neighbours: gathered before a product, scattered after it, or used in place
// where a tile is 16 heads of one token.
#pragma once
#include "softmax.h"

namespace trisparse::TRISPARSE_SET {

template <class Engine>
class RowGatherer {
 public:
  using Element = typename Engine::Element;

  RowGatherer(int64_t widest, int heads)
      : sums_in_place_(heads % kTileRows == 0), rows_(kPairRows * widest), sums_(kPairRows * widest) {}

  static bool in_place(const TileRows& rows) {
    return rows.count == kTileRows && rows.index[kTileRows - 1] - rows.index[0] == kTileRows - 1;
  }

  // the rows of a tile as left operand; `half` says which of two tiles
  const Element* left(const TileRows& rows, const Element* all, int64_t stride, int half) const {
    if (in_place(rows)) return all + rows.index[0] * stride;
    Element* to = rows_.get() + half * kTileRows * stride;
    for (int i = 0; i < rows.count; ++i)
      std::memcpy(to + i * stride, all + rows.index[i] * stride, sizeof(Element) * size_t(stride));
    std::fill(to + rows.count * stride, to + kTileRows * stride, Element(0));
    return to;
  }

  // where a product with the tile adds up; `scatter` brings it home
  float* sums(const TileRows& rows, float* all, int64_t stride, int half) const {
    if (sums_in_place_) return all + rows.index[0] * stride;
    float* to = sums_.get() + half * kTileRows * stride;
    std::fill(to, to + kTileRows * stride, 0.0f);
    return to;
  }

  void scatter(const TileRows& rows, float* all, int64_t stride, int half) const {
    if (sums_in_place_) return;
    const float* from = sums_.get() + half * kTileRows * stride;
    for (int i = 0; i < rows.count; ++i) {
      float* to = all + rows.index[i] * stride;
      for (int64_t index = 0; index < stride; ++index) to[index] += from[i * stride + index];
    }
  }

 private:
  // Every tile is 16 heads of one token. Elsewhere a chunk's rows decide whether those of a tile happen to be
  // neighbours, and an engine may add to sums in place in another order: bits would depend on the chunk.
  bool sums_in_place_;
  Buffer<Element> rows_;
  Buffer<float> sums_;
};

}  // namespace trisparse::TRISPARSE_SET
