// The forward of an instruction set for few rows behind others.
#include TRISPARSE_ENGINE
#include "decode.h"

#include "kernels.h"

namespace trisparse::TRISPARSE_SET {

int32_t run_decode(const Problem& p, const ThreadPool& pool) { return run(decode<SetEngine>, p, pool); }

}  // namespace trisparse::TRISPARSE_SET
