// Float vectors of 16 lanes.
#define TRISPARSE_SET avx512
#include "engine_float.h"
#include "kernels.h"

namespace trisparse {
extern const Kernels kAvx512Kernels;
const Kernels kAvx512Kernels{"avx512", avx512::takes_floats, avx512::run_float<true>, avx512::run_float<false>};
}  // namespace trisparse
