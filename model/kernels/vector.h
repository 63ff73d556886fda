// One instruction set's vectors, and numbers as they are stored. Compiled once for each path, with its flags.
//
// Decides how many lanes a vector has and how lanes are summed. Knows nothing of matrices.
// Everything is static: two paths in one library share no code by accident.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));

// The dtypes of tensors, numbered as in __init__.py.
enum Dtype : int32_t { FLOAT32 = 0, BFLOAT16 = 1 };

typedef uint16_t bfloat16;  // its bits

template <class V>
static inline V load(const void* from) {
    V v;
    memcpy(&v, from, sizeof v);
    return v;
}

template <class V>
static inline void store(void* to, V v) {
    memcpy(to, &v, sizeof v);
}

static inline Floats all(float x) { return x - Floats{}; }

// a * b + c, rounded once where the path has such an instruction.
static inline Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

// The sum of all lanes, in one fixed order: halves onto each other until one lane is left.
static inline float sum(Floats v) {
    float lanes[LANES];
    store(lanes, v);
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}

static inline float to_float(bfloat16 x) {
    uint32_t bits = (uint32_t)x << 16;
    return load<float>(&bits);
}

// To the nearest, ties to even; NaN stays NaN.
static inline bfloat16 to_bfloat16(float x) {
    uint32_t bits = load<uint32_t>(&x);
    if (x != x) return 0x7fc0;
    return (bfloat16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline float read(const void* from, Dtype dtype, int64_t i) {
    return dtype == BFLOAT16 ? to_float(((const bfloat16*)from)[i]) : ((const float*)from)[i];
}

static inline void write(void* to, Dtype dtype, int64_t i, float x) {
    if (dtype == BFLOAT16)
        ((bfloat16*)to)[i] = to_bfloat16(x);
    else
        ((float*)to)[i] = x;
}

// 2 * LANES numbers in two vectors. For bfloat16 the first holds those at even places, the second those
// at odd ones: two instructions, where the order as stored would take four.
static inline void load_pair(const float* from, Floats& first, Floats& second) {
    first = load<Floats>(from);
    second = load<Floats>(from + LANES);
}

static inline void load_pair(const bfloat16* from, Floats& even, Floats& odd) {
    Words words = load<Words>(from);
    even = (Floats)(words << 16);
    odd = (Floats)(words & 0xffff0000u);
}
