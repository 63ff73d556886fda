// One path: every kernel, compiled with one instruction set's flags and `PATH` as its name (see build.py).
// Each function exists for float32 and for bfloat16; library.py says what their arguments are.
#include "attention.h"
#include "elementwise.h"
#include "integer.h"
#include "linear.h"
#include "packed.h"

#define JOINED(path, name, dtype) path##_##name##_##dtype
#define NAMED(path, name, dtype) JOINED(path, name, dtype)
#define KERNEL(name, dtype) extern "C" __attribute__((visibility("default"))) int NAMED(PATH, name, dtype)

#define KERNELS(T, dtype)                                                                                          \
    KERNEL(linear, dtype)                                                                                          \
    (const T* x, const T* w, const T* bias, T* out, int64_t rows, int64_t inputs, int64_t outputs) {               \
        return linear(x, w, bias, out, rows, inputs, outputs);                                                     \
    }                                                                                                              \
    KERNEL(linear_int8, dtype)                                                                                     \
    (const T* x, const int8_t* w, const float* scales, const T* bias, T* out, int64_t rows, int64_t inputs,        \
     int64_t outputs) {                                                                                            \
        return linear_int8(x, w, scales, bias, out, rows, inputs, outputs);                                        \
    }                                                                                                              \
    KERNEL(linear_packed, dtype)                                                                                   \
    (const T* x, const uint8_t* codes, const void* scales, const uint8_t* zeros, const float* table, const T* bias,\
     T* out, int32_t bits, int32_t scale_kind, int64_t groups, int64_t size, int64_t rows, int64_t inputs,         \
     int64_t outputs) {                                                                                            \
        Packed packed = {codes, scales, zeros, table, bits, scale_kind, groups, size};                             \
        return linear_packed(x, packed, bias, out, rows, inputs, outputs);                                         \
    }                                                                                                              \
    KERNEL(activate, dtype)(const T* x, const T* factor, T* out, int32_t kind, int64_t rows, int64_t size) {       \
        return activate(x, factor, out, kind, rows, size);                                                         \
    }                                                                                                              \
    KERNEL(layer_norm, dtype)                                                                                      \
    (const T* x, const T* weight, const T* bias, T* out, float eps, int64_t rows, int64_t size) {                  \
        return layer_norm(x, weight, bias, out, eps, rows, size);                                                  \
    }                                                                                                              \
    KERNEL(rms_norm, dtype)                                                                                        \
    (const T* x, const T* weight, T* out, float eps, float offset, int64_t rows, int64_t size) {                   \
        return rms_norm(x, weight, out, eps, offset, rows, size);                                                  \
    }                                                                                                              \
    KERNEL(rotate, dtype)                                                                                          \
    (const T* x, const float* cos, const float* sin, T* out, int32_t interleaved, int64_t rows, int64_t heads,     \
     int64_t size, int64_t pairs) {                                                                                \
        return rotate(x, cos, sin, out, interleaved, rows, heads, size, pairs);                                    \
    }                                                                                                              \
    KERNEL(attend, dtype)                                                                                          \
    (const T* q, const T* k, const T* v, const float* sinks, T* out, const Step* step, int64_t layer,              \
     int64_t window) {                                                                                             \
        return attend(q, k, v, sinks, out, *step, layer, window);                                                  \
    }

KERNELS(float, float32)
KERNELS(bfloat16, bfloat16)
