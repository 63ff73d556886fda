// Products of weights of 4 bits with rows that are rounded to int8: those of integer.h with the weights
//
//   step * (code - zero), all within int8; a group of 32 inputs has one step and one zero.
//
// Few rows are multiplied with the codes as they are, group by group: step * (sum of code * x - zero * sum of x). For
// more rows a block's codes become integers in the processor's cache, and are multiplied as any. Sums are exact either way.
#pragma once

#include "integer.h"

typedef uint8_t Bytes __attribute__((vector_size(4 * LANES)));

constexpr int64_t GROUP = 32, GROUP_BYTES = GROUP / 2;
constexpr int64_t VECTOR_BYTES = sizeof(Bytes), VECTOR_INPUTS = 2 * VECTOR_BYTES;  // of codes, and the inputs that they are for
constexpr int64_t GROUPS_OF_VECTOR = VECTOR_INPUTS / GROUP;
constexpr int64_t AHEAD = 2048;  // bytes of codes between those that are fetched and those in use

// As model/quantization/int4.py has it. codes: [outputs, groups * GROUP_BYTES], two in a byte, the earlier in the lower
// half; grids: [outputs, groups], the step less 1 in the upper half of a byte, the zero in the lower.
struct Int4 {
    const uint8_t *codes, *grids;
    int64_t groups, outputs;
};

// Rows in int8. integers: [rows, stride], of each VECTOR_INPUTS those at even places first, as a vector's codes give
// them; sums: [rows, sums_stride], of each group's integers. Both are filled up with zeros.
struct Int8Rows {
    const int8_t* integers;
    const int32_t* sums;
    int64_t stride, sums_stride;
};

// VECTOR_INPUTS after VECTOR_INPUTS, in their place.
static void arrange(int8_t* integers, int64_t size) {
    for (int64_t first = 0; first < size; first += VECTOR_INPUTS) {
        int8_t some[VECTOR_INPUTS];
        memcpy(some, integers + first, VECTOR_INPUTS);
        for (int64_t i = 0; i < VECTOR_BYTES; i++) {
            integers[first + i] = some[2 * i];
            integers[first + VECTOR_BYTES + i] = some[2 * i + 1];
        }
    }
}

static void add_up_groups(const int8_t* integers, int64_t groups, int32_t* sums) {
    for (int64_t group = 0; group < groups; group++) {
        int16_t sum = 0;
        for (int64_t i = 0; i < GROUP; i++) sum += integers[group * GROUP + i];
        sums[group] = sum;
    }
}

// So many bytes from `from` on, where they lie, or in a copy with zeros: behind `end` there may be no memory.
template <int64_t SIZE>
static inline const uint8_t* readable(const uint8_t* from, const uint8_t* end, uint8_t (&copy)[SIZE]) {
    if (end - from >= SIZE) return from;
    memset(copy, 0, SIZE);
    if (end > from) memcpy(copy, from, end - from);
    return copy;
}

// The next LANES bytes, each in a word.
static inline Ints words(const uint8_t* from) {
#if defined(__AVX512F__)
    return (Ints)_mm512_cvtepu8_epi32(load<__m128i>(from));
#elif defined(__AVX2__)
    return (Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from));
#else
    return Ints{from[0], from[1], from[2], from[3]};
#endif
}

// sums + a * b, of numbers of 16 bits, b's not below 0. On AVX2 a word of each may be two numbers, whose products are
// added up.
static inline Ints add_products(Ints sums, Ints a, Ints b) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return sums + (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    return sums + a * b;
#endif
}

// A vector of codes with a row's integers: sums of 8 products, of 15 * 128 at most, in a word or, on AVX2, in its halves.
static inline Ints multiplied(Bytes even, Bytes odd, const int8_t* x) {
#if defined(__AVX512VNNI__)
    __m512i sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), (__m512i)even, load<__m512i>(x));
    return (Ints)_mm512_dpbusd_epi32(sums, (__m512i)odd, load<__m512i>(x + VECTOR_BYTES));
#elif defined(__AVX2__)
    __m256i sums = _mm256_maddubs_epi16((__m256i)even, load<__m256i>(x));
    return (Ints)_mm256_add_epi16(sums, _mm256_maddubs_epi16((__m256i)odd, load<__m256i>(x + VECTOR_BYTES)));
#else
    Ints sums = {};
    for (int i = 0; i < VECTOR_BYTES; i++) sums[i / 4] += even[i] * x[i] + odd[i] * x[VECTOR_BYTES + i];
    return sums;
#endif
}

// LANES groups of one output with ROWS rows, or as many of them as fill so many vectors. sums: of the codes, whose groups
// each have a quarter or so of a vector's lanes, and of the zeros, where each has a lane.
template <int ROWS>
static inline void step(Ints (&sums)[ROWS][2], const uint8_t* codes, const uint8_t* grids, const Int8Rows& x, int vectors) {
    Ints grid = words(grids), steps = (grid >> 4) + 1, zeros = add_products(Ints{}, grid & 15, steps);
    for (int m = 0; m < ROWS; m++)
        sums[m][1] = add_products(sums[m][1], load<Ints>(x.sums + m * x.sums_stride), zeros);
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
    steps |= steps << 16;
#endif
#pragma GCC unroll 4
    for (int i = 0; i < vectors; i++) {
        const uint8_t* from = codes + i * VECTOR_BYTES;
        __builtin_prefetch(from + AHEAD);
        Bytes packed = load<Bytes>(from), even = packed & 15, odd = packed >> 4;
        Ints step_of_lane = __builtin_shuffle(steps, i * (int32_t)GROUPS_OF_VECTOR + (lane_numbers() >> 2));  // a group has 4
        for (int m = 0; m < ROWS; m++) {
            Ints products = multiplied(even, odd, x.integers + m * x.stride + i * VECTOR_INPUTS);
            sums[m][0] = add_products(sums[m][0], products, step_of_lane);
        }
    }
}

// ROWS rows with some outputs; each sum goes to `finish(row, output, sum)`.
template <int ROWS, class Finish>
static void strip(const Int4& w, const Int8Rows& all_rows, int64_t row, int64_t first, int64_t last, const Finish& finish) {
    const uint8_t *codes_end = w.codes + w.outputs * w.groups * GROUP_BYTES, *grids_end = w.grids + w.outputs * w.groups;
    const int8_t* integers = all_rows.integers + row * all_rows.stride;
    const int32_t* sums_of_groups = all_rows.sums + row * all_rows.sums_stride;
    int64_t whole = w.groups / LANES * LANES;
    int vectors = (w.groups - whole + GROUPS_OF_VECTOR - 1) / GROUPS_OF_VECTOR;  // of the last step
    for (int64_t output = first; output < last; output++) {
        Ints sums[ROWS][2] = {};
        const uint8_t *codes = w.codes + output * w.groups * GROUP_BYTES, *grids = w.grids + output * w.groups;
        Int8Rows x = {integers, sums_of_groups, all_rows.stride, all_rows.sums_stride};
        for (int64_t group = 0; group < whole; group += LANES) {
            step<ROWS>(sums, codes, grids, x, 4);
            codes += LANES * GROUP_BYTES;
            grids += LANES;
            x.integers += LANES * GROUP;
            x.sums += LANES;
        }
        if (vectors) {  // past the row's end are others' codes, but x has zeros there
            uint8_t last_codes[LANES * GROUP_BYTES], last_grids[LANES];
            step<ROWS>(sums, readable(codes, codes_end, last_codes), readable(grids, grids_end, last_grids), x, vectors);
        }
        for (int m = 0; m < ROWS; m++) finish(row + m, output, sum(sums[m][0] - sums[m][1]));
    }
}

// All rows with all outputs.
template <class Finish>
static void strips(const Int4& w, const Int8Rows& x, int64_t rows, const Finish& finish) {
    int64_t block = outputs_of_block(w.outputs, w.groups * (GROUP_BYTES + 1), 1);
#pragma omp parallel for schedule(dynamic) if (rows * w.groups * GROUP * w.outputs > LEAST_WORK)
    for (int64_t first = 0; first < w.outputs; first += block) {
        int64_t last = first + block < w.outputs ? first + block : w.outputs, row = 0;
        for (; row + 4 <= rows; row += 4) strip<4>(w, x, row, first, last, finish);
        if (rows - row == 3) strip<3>(w, x, row, first, last, finish);
        if (rows - row == 2) strip<2>(w, x, row, first, last, finish);
        if (rows - row == 1) strip<1>(w, x, row, first, last, finish);
    }
}

#if defined(__AVX512VNNI__)
#if defined(__AMX_INT8__)
constexpr int64_t LEAST_ROWS_DECODED = 5;  // fewer are as fast by their codes
#else
constexpr int64_t LEAST_ROWS_DECODED = 12;
#endif

// For each grid the integers of the 16 codes.
struct Integers4 {
    int8_t of[256][16];

    constexpr Integers4() : of() {
        for (int grid = 0; grid < 256; grid++)
            for (int code = 0; code < 16; code++) of[grid][code] = (int8_t)((grid / 16 + 1) * (code - grid % 16));
    }
};
alignas(64) static constexpr Integers4 INTEGERS;

// An output's weights as integers, in the order of `arrange`: to[stride].
static void decode(const Int4& w, int64_t output, int64_t stride, int8_t* to) {
    const uint8_t *codes_end = w.codes + w.outputs * w.groups * GROUP_BYTES, *grids_end = w.grids + w.outputs * w.groups;
    const uint8_t *codes = w.codes + output * w.groups * GROUP_BYTES, *grids = w.grids + output * w.groups;
    for (int64_t first = 0; first < stride; first += VECTOR_INPUTS) {
        uint8_t last_codes[VECTOR_BYTES], last_grids[GROUPS_OF_VECTOR];
        __m512i packed = load<__m512i>(readable(codes, codes_end, last_codes)), mask = _mm512_set1_epi8(15);
        const uint8_t* grid = readable(grids, grids_end, last_grids);
        __builtin_prefetch(codes + AHEAD);
        __m512i values = _mm512_castsi128_si512(load<__m128i>(INTEGERS.of[grid[0]]));
        values = _mm512_mask_broadcast_i32x4(values, 0x00f0, load<__m128i>(INTEGERS.of[grid[1]]));
        values = _mm512_mask_broadcast_i32x4(values, 0x0f00, load<__m128i>(INTEGERS.of[grid[2]]));
        values = _mm512_mask_broadcast_i32x4(values, 0xf000, load<__m128i>(INTEGERS.of[grid[3]]));
        store(to + first, _mm512_shuffle_epi8(values, _mm512_and_si512(packed, mask)));
        store(to + first + VECTOR_BYTES, _mm512_shuffle_epi8(values, _mm512_and_si512(_mm512_srli_epi16(packed, 4), mask)));
        codes += VECTOR_BYTES;
        grids += GROUPS_OF_VECTOR;
    }
}

// All rows with all outputs, block by block decoded. -1 if there is no memory.
template <class Finish>
static int decoded(const Int4& w, const Int8Rows& x, int64_t rows, const Finish& finish) {
    int64_t block = IntegerProducts::block(w.outputs, x.stride);
    auto* weights = allocated<int8_t>(omp_get_max_threads() * block * x.stride);
    if (!weights) return -1;
    auto fetch = [=](int64_t first, int64_t last) {
        int8_t* to = weights + omp_get_thread_num() * block * x.stride;
        for (int64_t output = first; output < last; output++) decode(w, output, x.stride, to + (output - first) * x.stride);
        return to;
    };
    int result = IntegerProducts::multiply(x.integers, rows, x.stride, w.outputs, fetch, finish);
    free(weights);
    return result;
}
#else
constexpr int64_t LEAST_ROWS_DECODED = INT64_MAX;  // 4 bits need not be widened to 16, as those of int8 are

template <class Finish>
static int decoded(const Int4&, const Int8Rows&, int64_t, const Finish&) {
    return -1;
}
#endif

// y = W x + b. x: [rows, inputs], the weight as in `Int4`, scales: [outputs], bias: [outputs] or null, out:
// [rows, outputs]. -1 if there is no memory.
template <class T>
static int linear_int4(int64_t rows, const T* x, const uint8_t* codes, const uint8_t* grids, const float* scales,
                       const T* bias, T* out, int64_t inputs, int64_t outputs) {
    Int4 w = {codes, grids, rounded_up(inputs, GROUP) / GROUP, outputs};
    bool is_decoded = rows >= LEAST_ROWS_DECODED;
    int64_t stride = rounded_up(inputs, VECTOR_INPUTS), sums_stride = rounded_up(w.groups, LANES);
    Rounding rounding(rows);
    auto* integers = allocated<int8_t>(rows * stride);
    auto* sums = allocated<int32_t>(is_decoded ? 0 : rows * sums_stride);
    int result = rounding.steps && integers && sums ? 0 : -1;
#pragma omp parallel for if (rows * inputs > LEAST_WORK)
    for (int64_t row = 0; row < (result ? 0 : rows); row++) {
        int8_t* to = integers + row * stride;
        rounding.steps[row] = quantize_row(x + row * inputs, inputs, to, &rounding.sums[row]);
        memset(to + inputs, 0, stride - inputs);
        if (!is_decoded) {
            memset(sums + row * sums_stride, 0, sums_stride * sizeof *sums);
            add_up_groups(to, w.groups, sums + row * sums_stride);
        }
        arrange(to, stride);
    }
    FinishInteger<T> finish = {rounding, scales, bias, out, outputs, is_decoded ? IntegerProducts::OFFSET : 0};
    Int8Rows arranged = {integers, sums, stride, sums_stride};
    if (!result && is_decoded) result = decoded(w, arranged, rows, finish);
    if (!result && !is_decoded) strips(w, arranged, rows, finish);
    free(rounding.steps);
    free(integers);
    free(sums);
    return result;
}
