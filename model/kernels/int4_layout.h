// How int4's codes and the rows that they are multiplied with lie in memory, and beside each other in registers.
//
// A step is LANES groups, a lane for each, in two pairs of vectors.
#pragma once

#include "integer.h"

constexpr int64_t GROUP = 32, GROUP_BYTES = GROUP / 2;

// As model/quantization/int4.py has it. codes: [outputs, groups * GROUP_BYTES], two in a byte, the earlier in the lower
// half; scales and zeros: [outputs, groups].
struct Int4 {
    const uint8_t* codes;
    const bfloat16* scales;
    const uint8_t* zeros;
    int64_t groups;

    Int4 from(int64_t group) const { return {codes + group * GROUP_BYTES, scales + group, zeros + group, groups}; }
};

// Rows in int8. integers: [rows, groups * GROUP]; sums: [rows, groups], of each group's integers. Both are filled up with
// zeros to whole steps, a step of fewer before its groups; `groups` counts them all. The order within a step is that of
// what multiplies them.
struct Int8Rows {
    int8_t* integers;
    float* sums;
    int64_t groups;
};

typedef uint8_t Bytes __attribute__((vector_size(4 * LANES)));
typedef int64_t Quads __attribute__((vector_size(4 * LANES)));

// Half a step: the groups whose codes fill two vectors.
constexpr int64_t GROUPS_OF_PAIR = 8 * LANES / GROUP_BYTES;

// The codes of so many groups, each in a byte, 8 of a group side by side: the first 8 of a half, then those between them.
// So a sum of 8 products is one of a group's.
static inline void unpack_pair(const uint8_t* from, Bytes (&to)[4]) {
    constexpr int64_t COUNT = LANES / 2;
    Quads first, second;  // the first half of a group of the one vector, then of one of the other
    for (int64_t i = 0; i < COUNT; i++) {
        first[i] = i % 2 * (COUNT - 1) + i;
        second[i] = first[i] + 1;
    }
    Quads a = load<Quads>(from), b = load<Quads>(from + 4 * LANES);
    Bytes halves[2] = {(Bytes)__builtin_shuffle(a, b, first), (Bytes)__builtin_shuffle(a, b, second)};
    for (int half = 0; half < 2; half++) {
        to[2 * half] = halves[half] & 15;
        to[2 * half + 1] = halves[half] >> 4;
    }
}

// The group of a step that a lane has, where the sums of its halves come to lie: see `joined`.
constexpr int64_t group_of(int64_t lane) {
    return lane % 4 / 2 * GROUPS_OF_PAIR + lane / 4 + lane % 2 * (GROUPS_OF_PAIR / 2);
}

// The next LANES numbers, each in a word.
static inline Words words(const uint16_t* from) {
#if defined(__AVX512F__)
    return (Words)_mm512_cvtepu16_epi32(load<__m256i>(from));
#elif defined(__AVX2__)
    return (Words)_mm256_cvtepu16_epi32(load<__m128i>(from));
#else
    return Words{from[0], from[1], from[2], from[3]};
#endif
}

static inline Words words(const uint8_t* from) {
#if defined(__AVX512F__)
    return (Words)_mm512_cvtepu8_epi32(load<__m128i>(from));
#elif defined(__AVX2__)
    return (Words)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from));
#else
    return Words{from[0], from[1], from[2], from[3]};
#endif
}

// The scales of a step's groups, and what a group's sum of x is multiplied with.
static inline void load_factors(const bfloat16* scales, const uint8_t* zeros, Floats& scale, Floats& offset) {
    scale = (Floats)(words(scales) << 16);
    offset = __builtin_convertvector((Ints)words(zeros), Floats) * -scale;
}
