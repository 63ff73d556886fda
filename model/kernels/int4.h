// Products of weights of 4 bits, in groups of 32 inputs, with rows that are rounded to int8:
//
//   y = sx * sum over groups of s * (sum of code * x - zero * sum of x) + b
//
// A group's sums are of integers, and exact. Its share of an output is added up in float32, in lanes, by steps of LANES
// groups: an order that knows neither the number of rows nor the threads.
#pragma once

#include "int4_layout.h"
#include "int4_tiles.h"

constexpr int64_t AHEAD = 1024;  // bytes of codes between those that are fetched and those in use

// A row's integers in the order of `unpack_pair`, in their place, and each group's sum in that of the lanes.
static void arrange(int8_t* integers, int64_t groups, float* sums) {
    for (int64_t step = 0; step < groups; step += LANES, integers += LANES * GROUP, sums += LANES) {
        int8_t group[LANES][2][GROUP / 2];  // each in halves
        memcpy(group, integers, sizeof group);
        for (int64_t lane = 0; lane < LANES; lane++) {
            int64_t pair = lane % 4 / 2, place = lane / 4 * 16 + lane % 2 * 8;
            int8_t* to = integers + pair * GROUPS_OF_PAIR * GROUP + place;
            int32_t sum = 0;
            for (int half = 0; half < 2; half++)
                for (int i = 0; i < 8; i++) {
                    const int8_t* two = group[group_of(lane)][half] + 2 * i;
                    to[(2 * half) * 4 * LANES + i] = two[0];
                    to[(2 * half + 1) * 4 * LANES + i] = two[1];
                    sum += two[0] + two[1];
                }
            sums[lane] = sum;
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

// The sums of a step's groups, of those of their halves in two pairs: each lane with the one beside it.
static inline Ints joined(Ints first, Ints second) {
#if defined(__AVX512F__)
    __m512 a = (__m512)first, b = (__m512)second;
    return (Ints)_mm512_shuffle_ps(a, b, 0x88) + (Ints)_mm512_shuffle_ps(a, b, 0xdd);
#elif defined(__AVX2__)
    return (Ints)_mm256_hadd_epi32((__m256i)first, (__m256i)second);
#else
    return Ints{first[0] + first[1], first[2] + first[3], second[0] + second[1], second[2] + second[3]};
#endif
}

// LANES groups of one output with ROWS rows from `group` on. `skipped`: the first so many have zeros in x. An output has
// two sums, of the codes and of the zeros: an addition need not wait for the last one.
template <int ROWS>
static inline void step(Floats (&sums)[ROWS][2], const Int4& w, const Int8Rows& x, int64_t group, int64_t skipped) {
    Ints halves[ROWS][2] = {};
#pragma GCC unroll 2
    for (int pair = 0; pair < 2; pair++) {
        if ((pair + 1) * GROUPS_OF_PAIR <= skipped) continue;
        Bytes codes[4];
        unpack_pair(w.codes + pair * GROUPS_OF_PAIR * GROUP_BYTES, codes);
        for (int line = 0; ROWS == 1 && line < 8 * LANES; line += 64)
            __builtin_prefetch(w.codes + pair * GROUPS_OF_PAIR * GROUP_BYTES + line + AHEAD);
        for (int m = 0; m < ROWS; m++)
            halves[m][pair] = dot(codes, x.integers + (m * x.groups + group + pair * GROUPS_OF_PAIR) * GROUP);
    }
    Floats scale, offset;
    load_factors(w.scales, w.zeros, scale, offset);
    Ints places;
    for (int lane = 0; lane < LANES; lane++) places[lane] = group_of(lane);
    scale = __builtin_shuffle(scale, places);
    offset = __builtin_shuffle(offset, places);
    for (int m = 0; m < ROWS; m++) {
        Ints products = joined(halves[m][0], halves[m][1]);
        sums[m][0] = multiply_add(__builtin_convertvector(products, Floats), scale, sums[m][0]);
        sums[m][1] = multiply_add(offset, load<Floats>(x.sums + m * x.groups + group), sums[m][1]);
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

// All rows with all outputs.
template <class Finish>
static void strips(const Int4& w, const Int8Rows& x, int64_t rows, int64_t outputs, const Finish& finish) {
    int64_t block = outputs_of_block(outputs, w.groups * (GROUP_BYTES + 3), 1);
#pragma omp parallel for schedule(dynamic) if (rows * w.groups * GROUP * outputs > LEAST_WORK)
    for (int64_t first = 0; first < outputs; first += block) {
        int64_t last = first + block < outputs ? first + block : outputs, row = 0;
        for (; row + 4 <= rows; row += 4) strip<4>(w, x, row, first, last, finish);
        if (rows - row == 3) strip<3>(w, x, row, first, last, finish);
        if (rows - row == 2) strip<2>(w, x, row, first, last, finish);
        if (rows - row == 1) strip<1>(w, x, row, first, last, finish);
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
    bool has_memory = arranged.integers && arranged.sums && scales, is_in_tiles = rows >= LEAST_ROWS_IN_TILES;
#pragma omp parallel for if (rows * inputs > LEAST_WORK)
    for (int64_t row = 0; row < (has_memory ? rows : 0); row++) {
        int8_t* to = arranged.integers + row * stride;
        int32_t unused;
        scales[row] = quantize_row(x + row * inputs, inputs, to, &unused);
        memset(to + inputs, 0, stride - inputs);
        int64_t whole = w.groups / LANES * LANES * GROUP, gap = (groups - w.groups) * GROUP;
        memmove(to + whole + gap, to + whole, stride - whole - gap);  // the last of fewer: to their step's end
        memset(to + whole, 0, gap);
        if (is_in_tiles)
            arrange_for_tiles(to, groups, arranged.sums + row * groups);
        else
            arrange(to, groups, arranged.sums + row * groups);
    }
    auto finish = [=](int64_t row, int64_t output, float sum) {
        float y = sum * scales[row];
        narrow(bias ? y + widened(bias[output]) : y, out[row * outputs + output]);
    };
    int result = has_memory ? 0 : -1;
    if (has_memory && is_in_tiles) result = in_tiles(w, arranged, rows, outputs, finish);
    if (has_memory && !is_in_tiles) strips(w, arranged, rows, outputs, finish);
    free(arranged.integers);
    free(arranged.sums);
    free(scales);
    return result;
}
