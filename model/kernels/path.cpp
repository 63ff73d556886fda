// One path: every kernel, compiled with one instruction set's flags and `PATH` as its name (see build.py).
//
// To the outside all are alike: they take how many rows there are, and their other arguments as words of 64 bits, in
// whose lower bytes they lie. So calls can be kept as data, and made again for other rows (see recording.py).
#include <omp.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

// This path's own: what has one name in several would be linked to the code of one of them, for another instruction set.
namespace {
#include "attention.h"
#include "elementwise.h"
#include "int4.h"
#include "integer.h"
#include "linear.h"
#include "packed.h"
#include "quantize.h"
#include "sha256.h"
}  // namespace

template <class Argument>
static Argument argument(int64_t word) {
    return load<Argument>(&word);
}

template <class... Arguments, size_t... PLACES>
static int called(int (*kernel)(int64_t, Arguments...), int64_t rows, const int64_t* words,
                  std::index_sequence<PLACES...>) {
    return kernel(rows, argument<Arguments>(words[PLACES])...);
}

template <class... Arguments>
static int called(int (*kernel)(int64_t, Arguments...), int64_t rows, const int64_t* words) {
    return called(kernel, rows, words, std::make_index_sequence<sizeof...(Arguments)>());
}

#define JOINED(path, name, dtype) path##_##name##_##dtype
#define NAMED(path, name, dtype) JOINED(path, name, dtype)
#define KERNEL_OF(name, T, dtype)                                                                                \
    extern "C" __attribute__((visibility("default"))) int NAMED(PATH, name, dtype)(int64_t rows, const int64_t* words) { \
        return called(name<T>, rows, words);                                                                     \
    }
#define KERNEL(name) KERNEL_OF(name, float, float32) KERNEL_OF(name, bfloat16, bfloat16)

KERNEL(linear)
KERNEL(linear_int8)
KERNEL(linear_int4)
KERNEL(linear_packed)
KERNEL(quantize_int8)
KERNEL(quantize_int4)
KERNEL(activate)
KERNEL(add)
KERNEL(layer_norm)
KERNEL(rms_norm)
KERNEL(rotate)
KERNEL(attend)
KERNEL_OF(sha256, uint8_t, uint8)
