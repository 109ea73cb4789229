// Float vectors of 16 lanes.
#define TRISPARSE_SET avx512
#include "engine_float.h"
#include "kernels.h"

namespace trisparse {
extern const Kernels kAvx512Kernels;
// set by the compiler: nothing of this file may run before it is known that the processor can
constexpr Kernels kAvx512Kernels = avx512::table<avx512::FloatEngine>("avx512", avx512::takes_floats);
}  // namespace trisparse
