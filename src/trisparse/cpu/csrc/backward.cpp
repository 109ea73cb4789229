// The backward of an instruction set.
#include TRISPARSE_ENGINE
#include "backward.h"

#include "kernels.h"

namespace trisparse::TRISPARSE_SET {

int32_t run_backward(const Problem& p, const ThreadPool& pool) { return run(backward<SetEngine>, p, pool); }

}  // namespace trisparse::TRISPARSE_SET
