// bfloat16 products in AMX tiles; other data types are left to the next instruction set, which computes in float.
#define TRISPARSE_SET amx
#include "engine_amx.h"
#include "engine_float.h"
#include "kernels.h"

namespace trisparse {
extern const Kernels kAmxKernels;
const Kernels kAmxKernels{"amx", [](int32_t data_type) { return data_type == kBFloat16; },
                          amx::run<amx::AmxEngine, true, amx::BFloat16>,
                          amx::run<amx::AmxEngine, false, amx::BFloat16>};
}  // namespace trisparse
