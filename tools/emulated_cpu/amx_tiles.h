// The tile registers of AMX on any processor: as csrc/amx_tiles.h offers them, in plain C++. Slow.
#pragma once
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace trisparse::TRISPARSE_SET {

struct EmulatedTile {
  unsigned char bytes[16][64];
};

inline thread_local EmulatedTile emulated_tiles[8];
inline thread_local bool tiles_have_shape = false;

inline EmulatedTile& emulated_tile(int index) {
  if (!tiles_have_shape) {  // a processor raises an invalid instruction
    std::fputs("a tile was used outside of a session\n", stderr);
    std::abort();
  }
  return emulated_tiles[index];
}

class TileSession {
 public:
  TileSession() {
    tiles_have_shape = true;
    std::memset(emulated_tiles, 0, sizeof emulated_tiles);
  }
  ~TileSession() { tiles_have_shape = false; }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;
};

template <int tile>
inline void zero_tile() {
  std::memset(&emulated_tile(tile), 0, sizeof(EmulatedTile));
}

template <int tile>
inline void load_tile(const void* from, ptrdiff_t stride_bytes) {
  for (int row = 0; row < 16; ++row)
    std::memcpy(emulated_tile(tile).bytes[row], static_cast<const char*>(from) + row * stride_bytes, 64);
}

template <int tile>
inline void store_tile(void* to, ptrdiff_t stride_bytes) {
  for (int row = 0; row < 16; ++row)
    std::memcpy(static_cast<char*>(to) + row * stride_bytes, emulated_tile(tile).bytes[row], 64);
}

using emulated::without_subnormal;

// the even bfloat16 of each row, and the odd ones
struct TileHalves {
  float even[16][16], odd[16][16];

  explicit TileHalves(const EmulatedTile& tile) {
    for (int row = 0; row < 16; ++row) {
      uint32_t pairs[16];
      std::memcpy(pairs, tile.bytes[row], sizeof pairs);
      for (int index = 0; index < 16; ++index) {
        even[row][index] = number_of(pairs[index] << 16);
        odd[row][index] = number_of(pairs[index] & 0xffff0000);
      }
    }
  }

  static float number_of(uint32_t bits) {
    float number;
    std::memcpy(&number, &bits, sizeof bits);
    return without_subnormal(number);
  }
};

// even and odd depths add up apart, and then to what was there
template <int sum, int left, int right>
inline void multiply_tiles() {
  const TileHalves a(emulated_tile(left)), b(emulated_tile(right));
  for (int row = 0; row < 16; ++row) {
    float even[16] = {}, odd[16] = {}, out[16];
    for (int pair = 0; pair < 16; ++pair) {
      for (int column = 0; column < 16; ++column) {
        even[column] += a.even[row][pair] * b.even[pair][column];
        odd[column] += a.odd[row][pair] * b.odd[pair][column];
      }
    }
    unsigned char* place = emulated_tile(sum).bytes[row];
    std::memcpy(out, place, sizeof out);
    for (int column = 0; column < 16; ++column)
      out[column] = without_subnormal(out[column] + without_subnormal(even[column] + odd[column]));
    std::memcpy(place, out, sizeof out);
  }
}

inline void tiles_touch_memory() {}

}  // namespace trisparse::TRISPARSE_SET
