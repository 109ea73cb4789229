// The passes of one instruction set. Each is compiled from a source file of its own, once for every set: with
// the set's flags, its name as TRISPARSE_SET and the header of its engine as TRISPARSE_ENGINE.
#pragma once
#include "interface.h"
#include "workers.h"

namespace trisparse::TRISPARSE_SET {

int32_t run_forward(const Problem& p, const ThreadPool& pool);
int32_t run_backward(const Problem& p, const ThreadPool& pool);

inline int32_t run(Status (*pass)(const Problem&, const ThreadPool&), const Problem& p,
                   const ThreadPool& pool) {
  try {
    return pass(p, pool);
  } catch (...) {
    return current_error();
  }
}

inline bool takes_floats(int32_t data_type) { return data_type >= kFloat32 && data_type <= kFloat16; }

}  // namespace trisparse::TRISPARSE_SET
