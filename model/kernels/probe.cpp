// Which paths this processor, its hypervisor and its operating system allow. Compiled without special flags.
#include <cstring>

#define KERNEL extern "C" __attribute__((visibility("default")))

// 1 if code of this path can run here, else 0.
KERNEL int verbatim_supports(const char* path) {
    if (!strcmp(path, "plain")) return 1;
#if defined(__x86_64__)
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vnni");
    bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
    if (!strcmp(path, "avx2")) return avx2;
    if (!strcmp(path, "avx512")) return avx512;
    if (!strcmp(path, "avx512_bf16")) return bf16;
#endif
    return 0;
}
