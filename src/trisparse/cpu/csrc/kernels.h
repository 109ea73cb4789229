// The table of one instruction set, for its engine and the data types it takes.
#pragma once
#include "backward.h"
#include "forward.h"

namespace trisparse::TRISPARSE_SET {

template <class Engine, bool forwards, class Number>
int32_t run(const Problem& p, const ThreadPool& pool) {
  try {
    if constexpr (forwards) {
      return forward<Engine, Number>(p, pool);
    } else {
      return backward<Engine, Number>(p, pool);
    }
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  }
}

template <bool forwards>
int32_t run_float(const Problem& p, const ThreadPool& pool) {
  switch (p.data_type) {
    case kFloat32: return run<FloatEngine, forwards, float>(p, pool);
    case kBFloat16: return run<FloatEngine, forwards, BFloat16>(p, pool);
    case kFloat16: return run<FloatEngine, forwards, Float16>(p, pool);
  }
  return kInvalid;
}

inline bool takes_floats(int32_t data_type) { return data_type >= kFloat32 && data_type <= kFloat16; }

}  // namespace trisparse::TRISPARSE_SET
