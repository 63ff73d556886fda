// One instruction set's vectors, and numbers as they are stored. Compiled once for each path, with its flags.
//
// Decides how many lanes a vector has and how lanes are summed. Knows nothing of matrices.
// Two paths in one library share no code: path.cpp has all of this in a namespace without a name.
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

// The dtypes of numbers, as library.py numbers them.
enum Dtype : int32_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

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

// The number of each lane. From memory: GCC 12 builds such a vector lane by lane, each time that it is needed.
struct LaneNumbers {
    alignas(64) int32_t of[LANES];
    constexpr LaneNumbers() : of() {
        for (int i = 0; i < LANES; i++) of[i] = i;
    }
};
static constexpr LaneNumbers LANE_NUMBERS;

static inline Ints lane_numbers() { return load<Ints>(LANE_NUMBERS.of); }

// A number as one, or in all lanes, for what is written once for both.
template <class V>
static inline V spread(float x);
template <>
inline float spread<float>(float x) {
    return x;
}
template <>
inline Floats spread<Floats>(float x) {
    return all(x);
}

static inline float floats(int32_t x) { return (float)x; }
static inline Floats floats(Ints x) { return __builtin_convertvector(x, Floats); }

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

// The larger of two, lane by lane; y if one is NaN. It is one instruction, which compilers do not see in a comparison.
static inline Floats larger(Floats x, Floats y) {
#if defined(__AVX512F__)
    return (Floats)_mm512_max_ps((__m512)x, (__m512)y);
#elif defined(__AVX2__)
    return (Floats)_mm256_max_ps((__m256)x, (__m256)y);
#else
    return x > y ? x : y;
#endif
}

// The largest of all lanes, of which none is NaN.
static inline float largest(Floats v) {
    for (int apart = LANES / 2; apart; apart /= 2) v = larger(v, __builtin_shuffle(v, lane_numbers() ^ apart));
    return v[0];
}

// The sum of all lanes, in one fixed order: halves onto each other until one lane is left.
static inline float sum(Floats v) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
#else
    __m256 eight = (__m256)v;
#endif
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
    return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

// Of integers the order does not matter.
static inline int32_t sum(Ints v) {
    int32_t total = 0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
}

static inline int32_t sum(int32_t x) { return x; }

static inline float widened(float x) { return x; }

static inline float widened(bfloat16 x) {
    uint32_t bits = (uint32_t)x << 16;
    return load<float>(&bits);
}

// A float16's bits: its exponent and fraction, in the places that float32 has for them, are off by a power of 2.
static inline float widened_half(uint16_t x) {
    uint32_t bits = (x & 0x7fffu) << 13, beyond = bits | 0x7f800000u;
    float size = (x & 0x7c00) == 0x7c00 ? load<float>(&beyond) : load<float>(&bits) * 0x1p112f;
    return x & 0x8000 ? -size : size;
}

// To the nearest bfloat16, ties to even, in the upper half of each word; NaN stays NaN.
static inline Words rounded(Floats x) {
    Words bits = (Words)x;
    Words near = bits + 0x7fff + ((bits >> 16) & 1);
    return x != x ? bits | 0x400000u : near;
}

static inline void narrow(float x, float& to) { to = x; }

static inline void narrow(float x, bfloat16& to) {
    uint32_t bits = load<uint32_t>(&x);
    to = (x != x ? bits | 0x400000u : bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

// What a number, or each of a vector, is after it was stored as T.
template <class T, class V>
static inline V stored(V x) {
    return x;
}
template <>
inline float stored<bfloat16, float>(float x) {
    bfloat16 y;
    narrow(x, y);
    return widened(y);
}
template <>
inline Floats stored<bfloat16, Floats>(Floats x) {
    return (Floats)(rounded(x) & 0xffff0000u);
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

static inline void store_pair(float* to, Floats first, Floats second) {
    store(to, first);
    store(to + LANES, second);
}

static inline Words paired(Floats even, Floats odd) { return rounded(even) >> 16 | (rounded(odd) & 0xffff0000u); }

static inline void store_pair(bfloat16* to, Floats even, Floats odd) { store(to, paired(even, odd)); }

constexpr int64_t PAIR = 2 * LANES;

// The next numbers of a row, at most PAIR, in two vectors filled up with zeros, and back.
template <class T>
static inline void load_some(const T* from, int64_t left, Floats& first, Floats& second) {
    if (left >= PAIR) return load_pair(from, first, second);
    T some[PAIR] = {};
    memcpy(some, from, left * sizeof(T));
    load_pair(some, first, second);
}

template <class T>
static inline void store_some(T* to, int64_t left, Floats first, Floats second) {
    if (left >= PAIR) return store_pair(to, first, second);
    T some[PAIR];
    store_pair(some, first, second);
    memcpy(to, some, left * sizeof(T));
}
