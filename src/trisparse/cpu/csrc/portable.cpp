// Whatever vectors the compiler was told of: AVX2, NEON or plain registers.
#define TRISPARSE_SET portable
#include "engine_float.h"
#include "kernels.h"

namespace trisparse {
extern const Kernels kPortableKernels;
// set by the compiler: nothing of this file may run before it is known that the processor can
constexpr Kernels kPortableKernels =
    portable::table<portable::FloatEngine>("portable", portable::takes_floats);
}  // namespace trisparse
