// bfloat16 products in AMX tiles; other data types are left to the next instruction set, which computes in
// float.
#include "kernels.h"

namespace trisparse {
extern const Kernels kAmxKernels;
// set by the compiler: nothing of this set may run before it is known that the processor can
constexpr Kernels kAmxKernels = {"amx", [](int32_t data_type) { return data_type == int32_t(kBFloat16); },
                                 amx::run_forward, amx::run_backward};
}  // namespace trisparse
