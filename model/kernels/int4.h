// Products of weights of 4 bits, in groups of 32 inputs, with rows that are rounded to int8:
//
//   y = sx * sum over groups of s * (sum of code * x - zero * sum of x) + b
//
// A group's sums are of integers, and exact. Its share of an output is added up in float32, in lanes, by steps of LANES
// groups: an order that knows neither the number of rows nor the threads.
#pragma once

#include "integer.h"

constexpr int64_t GROUP = 32, GROUP_BYTES = GROUP / 2;
constexpr int64_t AHEAD = 1024;  // bytes of codes between those that are fetched and those in use

// As model/quantization/int4.py has it. codes: [outputs, groups * GROUP_BYTES], two in a byte, the earlier in the lower
// half; scales and zeros: [outputs, groups].
struct Int4 {
    const uint8_t* codes;
    const bfloat16* scales;
    const uint8_t* zeros;
    int64_t groups;

    Int4 from(int64_t group) const { return {codes + group * GROUP_BYTES, scales + group, zeros + group, groups}; }
};

// Rows in int8. integers: [rows, groups * GROUP], as `arrange` leaves them; sums: [rows, groups], of each group's
// integers. Both are filled up with zeros to whole steps, a step of fewer before its groups; `groups` counts them all.
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

// A row's integers in the order of `unpack_pair`, in their place, and each group's sum.
static void arrange(int8_t* integers, int64_t groups, float* sums) {
    int8_t pair[GROUPS_OF_PAIR][2][GROUP / 2];  // each group in halves
    for (int64_t group = 0; group < groups; group += GROUPS_OF_PAIR) {
        int8_t* to = integers + group * GROUP;
        memcpy(pair, to, sizeof pair);
        for (int64_t g = 0; g < GROUPS_OF_PAIR; g++) {
            int64_t place = g % (GROUPS_OF_PAIR / 2) * 16 + g / (GROUPS_OF_PAIR / 2) * 8;
            int32_t sum = 0;
            for (int half = 0; half < 2; half++)
                for (int i = 0; i < 8; i++) {
                    int8_t even = pair[g][half][2 * i], odd = pair[g][half][2 * i + 1];
                    to[(2 * half) * 4 * LANES + place + i] = even;
                    to[(2 * half + 1) * 4 * LANES + place + i] = odd;
                    sum += even + odd;
                }
            sums[group + g] = sum;
        }
    }
}

// Each lane's sum of products with 16 of a group's integers.
static inline Ints dot(const Bytes (&codes)[4], const int8_t* x) {
#if defined(__AVX512VNNI__)
    __m512i sums = _mm512_setzero_si512();
    for (int i = 0; i < 4; i++) sums = _mm512_dpbusd_epi32(sums, (__m512i)codes[i], load<__m512i>(x + 4 * LANES * i));
    return (Ints)sums;
#elif defined(__AVX2__)
    __m256i sums = _mm256_setzero_si256();  // of 8 products of at most 15 * 128: within 16 bits
    for (int i = 0; i < 4; i++)
        sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16((__m256i)codes[i], load<__m256i>(x + 4 * LANES * i)));
    return (Ints)_mm256_madd_epi16(sums, _mm256_set1_epi16(1));
#else
    Ints sums = {};
    for (int i = 0; i < 4; i++)
        for (int at = 0; at < 4 * LANES; at++) sums[at / 4] += codes[i][at] * x[4 * LANES * i + at];
    return sums;
#endif
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

// LANES groups of one output with ROWS rows from `group` on. `skipped`: the first so many have zeros in x. An output has
// two sums, in turns: an addition need not wait for the last one.
template <int ROWS>
static inline void step(Floats (&sums)[ROWS][2], const Int4& w, const Int8Rows& x, int64_t group, int64_t skipped) {
    Floats scale = (Floats)(words(w.scales) << 16), zero = __builtin_convertvector((Ints)words(w.zeros), Floats) * -scale;
    for (int m = 0; m < ROWS; m++)
        sums[m][1] = multiply_add(zero, load<Floats>(x.sums + m * x.groups + group), sums[m][1]);
#pragma GCC unroll 2
    for (int pair = 0; pair < 2; pair++) {
        if ((pair + 1) * GROUPS_OF_PAIR <= skipped) continue;
        Bytes codes[4];
        unpack_pair(w.codes + pair * GROUPS_OF_PAIR * GROUP_BYTES, codes);
        for (int line = 0; ROWS == 1 && line < 8 * LANES; line += 64)
            __builtin_prefetch(w.codes + pair * GROUPS_OF_PAIR * GROUP_BYTES + line + AHEAD);
        Ints places;
        for (int lane = 0; lane < LANES; lane++)
            places[lane] = pair * GROUPS_OF_PAIR + lane / 4 + lane % 4 / 2 * (GROUPS_OF_PAIR / 2);
        Floats scales = __builtin_shuffle(scale, places);  // each lane's group's
        for (int m = 0; m < ROWS; m++) {
            Ints products = dot(codes, x.integers + (m * x.groups + group + pair * GROUPS_OF_PAIR) * GROUP);
            sums[m][pair] = multiply_add(__builtin_convertvector(products, Floats), scales, sums[m][pair]);
        }
    }
}

// ROWS rows with some outputs; each sum goes to `finish(row, output, sum)`.
template <int ROWS, class Finish>
static void strip(const Int4& w, const Int8Rows& x, int64_t row, int64_t first, int64_t last, const Finish& finish) {
    const Int8Rows some = {x.integers + row * x.groups * GROUP, x.sums + row * x.groups, x.groups};
    int64_t whole = w.groups / LANES * LANES, skipped = x.groups - w.groups;
    for (int64_t output = first; output < last; output++) {
        Floats sums[ROWS][2];
        for (int m = 0; m < ROWS; m++) sums[m][0] = sums[m][1] = Floats{};
        int64_t at = output * w.groups, end = at + w.groups;
        for (int64_t group = 0; group < whole; group += LANES) step<ROWS>(sums, w.from(at + group), some, group, 0);
        // What is left is read with what comes before it, be it another output's: behind the last there may be no memory,
        // and before the first.
        if (skipped && end >= LANES) {
            step<ROWS>(sums, w.from(end - LANES), some, whole, skipped);
        } else if (skipped) {
            uint8_t codes[LANES * GROUP_BYTES] = {}, zeros[LANES] = {};
            bfloat16 scales[LANES] = {};
            memcpy(codes + (LANES - end) * GROUP_BYTES, w.codes, end * GROUP_BYTES);
            memcpy(scales + LANES - end, w.scales, end * sizeof *scales);
            memcpy(zeros + LANES - end, w.zeros, end);
            step<ROWS>(sums, {codes, scales, zeros, w.groups}, some, whole, skipped);
        }
        for (int m = 0; m < ROWS; m++) finish(row + m, output, sum(sums[m][0] + sums[m][1]));
    }
}

// y = W x + b. x: [rows, inputs], the weight as in `Int4`, bias: [outputs] or null, out: [rows, outputs]. -1 if there is
// no memory.
template <class T>
static int linear_int4(int64_t rows, const T* x, const uint8_t* codes, const bfloat16* scales_of_groups,
                       const uint8_t* zeros, const T* bias, T* out, int64_t inputs, int64_t outputs) {
    Int4 w = {codes, scales_of_groups, zeros, rounded_up(inputs, GROUP) / GROUP};
    int64_t groups = rounded_up(w.groups, LANES), stride = groups * GROUP;
    Int8Rows arranged = {allocated<int8_t>(rows * stride), allocated<float>(rows * groups), groups};
    auto* scales = allocated<float>(rows);
    bool has_memory = arranged.integers && arranged.sums && scales;
#pragma omp parallel for if (rows * inputs > LEAST_WORK)
    for (int64_t row = 0; row < (has_memory ? rows : 0); row++) {
        int8_t* to = arranged.integers + row * stride;
        int32_t unused;
        scales[row] = quantize_row(x + row * inputs, inputs, to, &unused);
        memset(to + inputs, 0, stride - inputs);
        int64_t whole = w.groups / LANES * LANES * GROUP, gap = (groups - w.groups) * GROUP;
        memmove(to + whole + gap, to + whole, stride - whole - gap);  // the last of fewer: to their step's end
        memset(to + whole, 0, gap);
        arrange(to, groups, arranged.sums + row * groups);
    }
    auto finish = [=](int64_t row, int64_t output, float sum) {
        float y = sum * scales[row];
        narrow(bias ? y + widened(bias[output]) : y, out[row * outputs + output]);
    };
    int64_t block = outputs_of_block(outputs, w.groups * (GROUP_BYTES + 3), 1);
#pragma omp parallel for schedule(dynamic) if (rows * inputs * outputs > LEAST_WORK)
    for (int64_t first = 0; first < (has_memory ? outputs : 0); first += block) {
        int64_t last = first + block < outputs ? first + block : outputs, row = 0;
        for (; row + 4 <= rows; row += 4) strip<4>(w, arranged, row, first, last, finish);
        if (rows - row == 3) strip<3>(w, arranged, row, first, last, finish);
        if (rows - row == 2) strip<2>(w, arranged, row, first, last, finish);
        if (rows - row == 1) strip<1>(w, arranged, row, first, last, finish);
    }
    free(arranged.integers);
    free(arranged.sums);
    free(scales);
    return has_memory ? 0 : -1;
}
