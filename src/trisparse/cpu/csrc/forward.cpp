// The forward of an instruction set, of many rows or of few.
#include TRISPARSE_ENGINE
#include "forward.h"

#include "decoding.h"
#include "kernels.h"

namespace trisparse::TRISPARSE_SET {

int32_t run_forward(const Problem& p, const ThreadPool& pool) {
  return is_decoding(p) ? run_decode(p, pool) : run(forward<SetEngine>, p, pool);
}

}  // namespace trisparse::TRISPARSE_SET
