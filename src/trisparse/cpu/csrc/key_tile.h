// 64 keys that were not packed beforehand: which ones, and where they lie.
#pragma once
#include <algorithm>

#include "sequence.h"

namespace trisparse::TRISPARSE_SET {

constexpr int32_t kNoKey = INT32_MAX;  // in everybody's future

// Column c is key `key[c]` of a sequence, or none
class KeyTile {
 public:
  KeyTile() { std::fill(key, key + kTileKeys, kNoKey); }

  // keys first .. first + 63, as far as lowest <= key < end
  static KeyTile run(int64_t first, int64_t lowest, int64_t end) {
    KeyTile tile;
    for (int64_t index = std::max(first, lowest); index < std::min(first + kTileKeys, end); ++index)
      tile.key[index - first] = int32_t(index);
    return tile;
  }

  bool whole() const { return key[0] != kNoKey && key[kTileKeys - 1] != kNoKey; }

  int32_t key[kTileKeys];
};

// Where a group's keys, or values, lie in one tensor
struct KeyPlace {
  const Tensor& tensor;
  int32_t type;
  int64_t batch, group;
  int64_t ring;  // slots; 0: a key lies in the row of its position

  const void* address(int32_t key) const {
    return row_of(tensor, type, batch, ring ? key % ring : key, group);
  }

  // are the tile's rows evenly spaced, all 64 of them?
  bool neighbours(const KeyTile& tile) const {
    if (!tile.whole()) return false;
    const int64_t first = tile.key[0], last = tile.key[kTileKeys - 1];
    return last - first == kTileKeys - 1 && (ring == 0 || last % ring - first % ring == kTileKeys - 1);
  }
};

// A tile that will be read soon, asked for line by line between other work. Few lines at a time: requests
// fill the first-level cache's queue of misses, and then even what lies in the second level has to wait.
class Ahead {
 public:
  Ahead() = default;

  Ahead(const KeyPlace& place, const KeyTile& tile, int features)
      : bytes_(features * size_of(place.type)), stride_(place.tensor.row_stride * size_of(place.type)) {
    if (!place.neighbours(tile)) return;
    row_ = static_cast<const char*>(place.address(tile.key[0]));
    rows_ = kTileKeys;
  }

  int64_t lines() const { return rows_ * ((bytes_ + 63) / 64); }

  // up to `count` lines -> how many there no longer were
  int64_t ask(int64_t count) {
#if defined(__x86_64__)
    for (; count > 0 && rows_ > 0; --count) {
      // a builtin is dropped where a function does nothing else
      asm volatile("prefetcht1 %0" ::"m"(row_[byte_]));
      byte_ += 64;
      if (byte_ < bytes_) continue;
      byte_ = 0;
      row_ += stride_;
      --rows_;
    }
#endif
    return count;
  }

 private:
  const char* row_ = nullptr;
  int64_t bytes_ = 0, stride_ = 0;
  [[maybe_unused]] int64_t byte_ = 0;  // not on every processor
  int rows_ = 0;
};

}  // namespace trisparse::TRISPARSE_SET
