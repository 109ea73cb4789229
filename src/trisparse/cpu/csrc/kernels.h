// The table of one instruction set, for its engine and the data types it takes.
#pragma once
#include "backward.h"
#include "forward.h"

namespace trisparse::TRISPARSE_SET {

template <Status (*function)(const Problem&, const ThreadPool&)>
int32_t run(const Problem& p, const ThreadPool& pool) {
  try {
    return function(p, pool);
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  }
}

template <class Engine>
constexpr Kernels table(const char* name, bool (*takes)(int32_t data_type)) {
  return {name, takes, run<forward<Engine>>, run<backward<Engine>>};
}

inline bool takes_floats(int32_t data_type) { return data_type >= kFloat32 && data_type <= kFloat16; }

}  // namespace trisparse::TRISPARSE_SET
