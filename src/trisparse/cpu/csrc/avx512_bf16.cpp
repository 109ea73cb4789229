// bfloat16 products by the dot products of AVX-512; other data types are left to the next instruction set,
// which computes in float.
#include "kernels.h"

namespace trisparse {
extern const Kernels kAvx512Bf16Kernels;
// set by the compiler: nothing of this set may run before it is known that the processor can
constexpr Kernels kAvx512Bf16Kernels = {"avx512_bf16",
                                        [](int32_t data_type) { return data_type == int32_t(kBFloat16); },
                                        avx512_bf16::run_forward, avx512_bf16::run_backward};
}  // namespace trisparse
