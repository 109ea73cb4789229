// Whatever vectors the compiler was told of: AVX2, NEON or plain registers.
#define TRISPARSE_SET portable
#include "engine_float.h"
#include "kernels.h"

namespace trisparse {
extern const Kernels kPortableKernels;
const Kernels kPortableKernels{"portable", portable::takes_floats, portable::run_float<true>,
                               portable::run_float<false>};
}  // namespace trisparse
