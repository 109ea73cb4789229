// The library's functions: which instruction sets this processor runs, and calls to the chosen one. Compiled
// without any instruction set's flags, so that asking is safe everywhere.
#include <cstring>
#include <string>
#include <vector>

#include "interface.h"
#if defined(TRISPARSE_WITH_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace trisparse {

#if defined(TRISPARSE_WITH_AMX)
extern const Kernels kAmxKernels;
#endif
#if defined(TRISPARSE_WITH_AVX512_BF16)
extern const Kernels kAvx512Bf16Kernels;
#endif
#if defined(TRISPARSE_WITH_AVX512)
extern const Kernels kAvx512Kernels;
#endif
#if defined(TRISPARSE_WITH_PORTABLE)
extern const Kernels kPortableKernels;
#endif

namespace {

#if defined(TRISPARSE_WITH_AVX512) || defined(TRISPARSE_WITH_AVX512_BF16) || defined(TRISPARSE_WITH_AMX)
bool runs_avx512() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("fma");
}
#endif

#if defined(TRISPARSE_WITH_AVX512_BF16) || defined(TRISPARSE_WITH_AMX)
bool runs_avx512_bf16() { return runs_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif

#if defined(TRISPARSE_WITH_AMX)
// The processor must have the tiles, and the system must grant their (large) state to this process
bool runs_amx() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool has_tiles = (d >> 24 & 1) && (d >> 22 & 1);
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return has_tiles && runs_avx512_bf16() &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

const std::vector<const Kernels*>& usable() {
  static const std::vector<const Kernels*> found = [] {
    std::vector<const Kernels*> kernels;
#if defined(TRISPARSE_WITH_AMX)
    if (runs_amx()) kernels.push_back(&kAmxKernels);
#endif
#if defined(TRISPARSE_WITH_AVX512_BF16)
    if (runs_avx512_bf16()) kernels.push_back(&kAvx512Bf16Kernels);
#endif
#if defined(TRISPARSE_WITH_AVX512)
    if (runs_avx512()) kernels.push_back(&kAvx512Kernels);
#endif
#if defined(TRISPARSE_WITH_PORTABLE)
    kernels.push_back(&kPortableKernels);
#endif
    return kernels;
  }();
  return found;
}

ThreadPool pool{};
size_t chosen = 0;

// from the chosen set on, the first that takes the data type
const Kernels* kernels_for(int32_t data_type) {
  for (size_t index = chosen; index < usable().size(); ++index) {
    if (usable()[index]->takes(data_type)) return usable()[index];
  }
  return nullptr;
}

}  // namespace
}  // namespace trisparse

#define TRISPARSE_EXPORT extern "C" __attribute__((visibility("default")))

TRISPARSE_EXPORT uint32_t trisparse_interface_version() { return trisparse::kInterfaceVersion; }

TRISPARSE_EXPORT int32_t trisparse_initialize(void* parallel_for, void* get_num_threads) {
  if (!parallel_for || !get_num_threads) return trisparse::kInvalid;
  trisparse::pool = {reinterpret_cast<trisparse::ParallelFor>(parallel_for),
                     reinterpret_cast<trisparse::GetNumThreads>(get_num_threads)};
  return trisparse::kOk;
}

// names, best first, with commas between
TRISPARSE_EXPORT const char* trisparse_instruction_sets() {
  static const std::string names = [] {
    std::string text;
    for (const trisparse::Kernels* each : trisparse::usable()) {
      text += text.empty() ? "" : ",";
      text += each->name;
    }
    return text;
  }();
  return names.c_str();
}

TRISPARSE_EXPORT int32_t trisparse_select_instruction_set(const char* name) {
  for (size_t index = 0; index < trisparse::usable().size(); ++index) {
    if (std::strcmp(trisparse::usable()[index]->name, name) == 0) {
      trisparse::chosen = index;
      return trisparse::kOk;
    }
  }
  return trisparse::kInvalid;
}

TRISPARSE_EXPORT int32_t trisparse_forward(const trisparse::Problem* problem) {
  const trisparse::Kernels* kernels = trisparse::kernels_for(problem->data_type);
  return kernels ? kernels->forward(*problem, trisparse::pool) : int32_t(trisparse::kInvalid);
}

TRISPARSE_EXPORT int32_t trisparse_backward(const trisparse::Problem* problem) {
  const trisparse::Kernels* kernels = trisparse::kernels_for(problem->data_type);
  return kernels ? kernels->backward(*problem, trisparse::pool) : int32_t(trisparse::kInvalid);
}

// the set that a call with this data type would run; null if none takes it
TRISPARSE_EXPORT const char* trisparse_instructions_for(int32_t data_type) {
  const trisparse::Kernels* kernels = trisparse::kernels_for(data_type);
  return kernels ? kernels->name : nullptr;
}
