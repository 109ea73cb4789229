// The tile registers of AMX: eight, each 16 rows of 64 bytes. What this file offers, and nothing else of AMX, is
// emulated for tests on other processors.
#pragma once
#include <cstddef>
#include <cstdint>

namespace trisparse::TRISPARSE_SET {

// The shape of all registers, for one thread while it lives; they are used in between only
class TileSession {
 public:
  TileSession() {
    alignas(64) uint8_t shape[64] = {};
    shape[0] = 1;  // palette 1: tiles of up to 16 rows of 64 bytes
    for (int tile = 0; tile < 8; ++tile) {
      shape[16 + 2 * tile] = 64;
      shape[48 + tile] = 16;
    }
    asm volatile("ldtilecfg %0" ::"m"(shape));
  }
  ~TileSession() { asm volatile("tilerelease"); }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;
};

template <int tile>
inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(tile));
}

template <int tile>
inline void load_tile(const void* from, ptrdiff_t stride_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride_bytes), "i"(tile));
}

template <int tile>
inline void store_tile(void* to, ptrdiff_t stride_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride_bytes), "i"(tile));
}

// Row m and column n of `sum`, floats, += all bfloat16 of row m of `left` times pairs n of the rows of `right`
template <int sum, int left, int right>
inline void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(left), "i"(right));
}

// The instructions above say nothing about the memory they touch: stands before the first and after the last
inline void tiles_touch_memory() { asm volatile("" ::: "memory"); }

}  // namespace trisparse::TRISPARSE_SET
