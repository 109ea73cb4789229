// Whatever vectors the compiler was told of: AVX2, NEON or plain registers.
#include "kernels.h"

namespace trisparse {
extern const Kernels kPortableKernels;
// set by the compiler: nothing of this set may run before it is known that the processor can
constexpr Kernels kPortableKernels = {"portable", portable::takes_floats, portable::run_forward,
                                      portable::run_backward};
}  // namespace trisparse
