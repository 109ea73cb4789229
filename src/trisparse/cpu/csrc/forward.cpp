// The forward of an instruction set: two ways, one for few rows.
#include TRISPARSE_ENGINE
#include "forward.h"

#include "decode.h"
#include "kernels.h"

namespace trisparse::TRISPARSE_SET {

int32_t run_forward(const Problem& p, const ThreadPool& pool) {
  return run(is_decoding(p) ? decode<SetEngine> : forward<SetEngine>, p, pool);
}

}  // namespace trisparse::TRISPARSE_SET
