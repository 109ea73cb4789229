// Float vectors of 16 lanes.
#include "kernels.h"

namespace trisparse {
extern const Kernels kAvx512Kernels;
// set by the compiler: nothing of this set may run before it is known that the processor can
constexpr Kernels kAvx512Kernels = {"avx512", avx512::takes_floats, avx512::run_forward,
                                    avx512::run_backward};
}  // namespace trisparse
