// bfloat16 products in AMX tiles; other data types are left to the next instruction set, which computes in
// float.
#define TRISPARSE_SET amx
#include "engine_amx.h"
#include "kernels.h"

namespace trisparse {
extern const Kernels kAmxKernels;
// set by the compiler: nothing of this file may run before it is known that the processor can
constexpr Kernels kAmxKernels =
    amx::table<amx::AmxEngine>("amx", [](int32_t data_type) { return data_type == int32_t(kBFloat16); });
}  // namespace trisparse
