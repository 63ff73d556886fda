// What the library has once, for all paths: which of them this machine allows, and calls one after another. Compiled
// without special flags.
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define EXPORTED extern "C" __attribute__((visibility("default")))

#if defined(__x86_64__)
// Whether there are tiles, and whether the operating system keeps them: Linux has to be asked, once for the process,
// before the first is touched.
static bool has_tiles() {
    unsigned a, b, c, d, lower, upper;
    constexpr unsigned BF16 = 1u << 22, TILE = 1u << 24, INT8 = 1u << 25, STATES = 3u << 17;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || ~d & (BF16 | TILE | INT8)) return false;
    asm("xgetbv" : "=a"(lower), "=d"(upper) : "c"(0));
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
    return (lower & STATES) == STATES && !syscall(SYS_arch_prctl, REQUEST, TILE_DATA);
}
#endif

// 1 if code of this path can run here, else 0.
EXPORTED int verbatim_supports(const char* path) {
    if (!strcmp(path, "plain")) return 1;
#if defined(__x86_64__)
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vnni");
    bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
    if (!strcmp(path, "avx2")) return avx2;
    if (!strcmp(path, "avx512")) return avx512;
    if (!strcmp(path, "avx512_bf16")) return bf16;
    if (!strcmp(path, "amx")) return bf16 && has_tiles();
#endif
    return 0;
}

// As in recording.py.
struct Call {
    int (*kernel)(int64_t, const int64_t*);
    const int64_t* words;
    int64_t rows;  // the kernel's, for each one of the step
};

// Calls for a step of so many rows. What the first that failed gave, else 0.
EXPORTED int verbatim_run(const Call* calls, int64_t count, int64_t rows) {
    for (int64_t i = 0; i < count; i++)
        if (int result = calls[i].kernel(rows * calls[i].rows, calls[i].words)) return result;
    return 0;
}
