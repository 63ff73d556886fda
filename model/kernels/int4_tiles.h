// int4's products of several rows in the processor's tiles (AMX): the bits that int4.h has for each row.
//
// A sum there is of two parts for each lane: of the codes and of the zeros, each step after step. Here a tile has a
// group's products of 16 outputs with 16 rows, and 16 such parts are added up side by side in registers.
#pragma once

#include "int4_layout.h"

#if defined(__AMX_INT8__)

constexpr int64_t LEAST_ROWS_IN_TILES = 17;  // fewer are as fast in registers

// A row's integers, of each group those at even places first, in their place, and each group's sum.
static void arrange_for_tiles(int8_t* integers, int64_t groups, float* sums) {
    for (int64_t group = 0; group < groups; group++, integers += GROUP) {
        int8_t pairs[GROUP / 2][2];
        memcpy(pairs, integers, sizeof pairs);
        int32_t sum = 0;
        for (int i = 0; i < GROUP / 2; i++) {
            integers[i] = pairs[i][0];
            integers[GROUP / 2 + i] = pairs[i][1];
            sum += pairs[i][0] + pairs[i][1];
        }
        sums[group] = sum;
    }
}

// The products of the group `ahead` of the lane's first; the intrinsics want their tiles as literals.
#define MULTIPLY_GROUP(ahead, products, of_codes, of_x)                     \
    {                                                                       \
        _tile_zero(products);                                               \
        _tile_loadd(of_codes, w + (group + ahead) * GROUP, stride);         \
        _tile_loadd(of_x, x + (group + ahead) * GROUP / 4 * SIDE, STEP);    \
        _tile_dpbusd(products, of_codes, of_x);                             \
    }

// 16 outputs, of whole steps as `Int8Rows` is.
struct Int4Tile {
    uint8_t* codes;           // [16, stride], one in a byte, of each group those at even places first
    float *scales, *offsets;  // [groups, 16]; an offset is -zero * scale
    int64_t groups, stride;

    // From the output `first` on. Of those past `count` only the factors are set, to 0.
    void fill(const Int4& w, int64_t first, int64_t count) const {
        for (int64_t step = 0; step < groups; step += LANES) {
            int64_t number = w.groups - step < LANES ? w.groups - step : LANES, skipped = LANES - number;
            __m512i factors[2][SIDE] = {};
            for (int64_t n = 0; n < count; n++) {
                Int4 from = w.from((first + n) * w.groups + step);
                uint8_t some[LANES * GROUP_BYTES], zeros[LANES];
                bfloat16 some_scales[LANES];
                if (skipped) {  // behind the last there may be no memory
                    memset(some, 0, sizeof some);
                    memset(zeros, 0, sizeof zeros);
                    memset(some_scales, 0, sizeof some_scales);
                    memcpy(some + skipped * GROUP_BYTES, from.codes, number * GROUP_BYTES);
                    memcpy(zeros + skipped, from.zeros, number);
                    memcpy(some_scales + skipped, from.scales, number * sizeof *some_scales);
                    from = {some, some_scales, zeros, LANES};
                }
                for (int64_t i = 0; i < LANES; i += 4)
                    unpack(from.codes + i * GROUP_BYTES, codes + n * stride + (step + i) * GROUP);
                load_factors(from.scales, from.zeros, (Floats&)factors[0][n], (Floats&)factors[1][n]);
            }
            for (int i = 0; i < 2; i++) {
                transpose(factors[i]);
                for (int64_t group = 0; group < LANES; group++)
                    store((i ? offsets : scales) + (step + group) * SIDE, factors[i][group]);
            }
        }
    }

    // The codes of four groups.
    static inline void unpack(const uint8_t* from, uint8_t* to) {
        __m512i packed = load<__m512i>(from), mask = _mm512_set1_epi8(15);
        __m512i even = _mm512_and_si512(packed, mask), odd = _mm512_and_si512(_mm512_srli_epi16(packed, 4), mask);
        store(to, _mm512_permutex2var_epi64(even, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), odd));
        store(to + 64, _mm512_permutex2var_epi64(even, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), odd));
    }

    // A lane's parts, of each step the group `first`. x: [groups, 8 words, 16 rows]; x_sums: [groups, 16 rows].
    inline void add_up(int64_t first, const uint32_t* x, const float* x_sums, Floats (&sums)[SIDE]) const {
        const uint8_t* w = codes;
        Floats of_codes[SIDE] = {}, of_zeros[SIDE] = {};
        for (int64_t group = first; group < groups; group += 4 * LANES) {
            int64_t steps = (groups - group + LANES - 1) / LANES;
            alignas(64) int32_t products[4][SIDE][SIDE];
            MEMORY_IS_READ;
            MULTIPLY_GROUP(0, 0, 4, 6)
            if (steps > 1) MULTIPLY_GROUP(LANES, 1, 5, 7)
            if (steps > 2) MULTIPLY_GROUP(2 * LANES, 2, 4, 6)
            if (steps > 3) MULTIPLY_GROUP(3 * LANES, 3, 5, 7)
            _tile_stored(0, products[0], STEP);
            if (steps > 1) _tile_stored(1, products[1], STEP);
            if (steps > 2) _tile_stored(2, products[2], STEP);
            if (steps > 3) _tile_stored(3, products[3], STEP);
            MEMORY_IS_READ;
            for (int64_t i = 0; i < 4 && i < steps; i++) {
                const float* scale = scales + (group + i * LANES) * SIDE;
#pragma GCC unroll 16
                for (int n = 0; n < SIDE; n++)
                    of_codes[n] = multiply_add(__builtin_convertvector(load<Ints>(products[i][n]), Floats), all(scale[n]), of_codes[n]);
            }
        }
        for (int64_t group = first; group < groups; group += LANES) {
            Floats of_rows = load<Floats>(x_sums + group * SIDE);
#pragma GCC unroll 16
            for (int n = 0; n < SIDE; n++) of_zeros[n] = multiply_add(all(offsets[group * SIDE + n]), of_rows, of_zeros[n]);
        }
        for (int n = 0; n < SIDE; n++) sums[n] = of_codes[n] + of_zeros[n];
    }

    // All outputs with 16 rows. out: [rows, outputs].
    void multiply(const uint32_t* x, const float* x_sums, float (&out)[SIDE][SIDE]) const {
        Floats sums[LANES][SIDE];
        for (int64_t lane = 0; lane < LANES; lane++) add_up(group_of(lane), x, x_sums, sums[lane]);
        for (int half = LANES / 2; half; half /= 2)  // as `sum` adds up the lanes
            for (int lane = 0; lane < half; lane++)
                for (int n = 0; n < SIDE; n++) sums[lane][n] += sums[lane + half][n];
        __m512i square[SIDE];
        for (int n = 0; n < SIDE; n++) square[n] = (__m512i)sums[0][n];
        transpose(square);
        for (int m = 0; m < SIDE; m++) store(out[m], square[m]);
    }
};

// All rows with all outputs; each sum goes to `finish(row, output, sum)`. -1 if there is no memory.
template <class Finish>
static int in_tiles(const Int4& w, const Int8Rows& x, int64_t rows, int64_t outputs, const Finish& finish) {
    int64_t row_tiles = rounded_up(rows, SIDE) / SIDE, bytes = x.groups * GROUP, steps = bytes / STEP;
    int64_t stride = bytes + STEP;  // outputs so far apart lie in different sets of the cache
    int64_t threads = omp_get_max_threads();
    auto* laid_out = allocated<uint32_t>(row_tiles * steps * WORDS);
    auto* x_sums = allocated<float>(row_tiles * x.groups * SIDE);
    auto* codes = allocated<uint8_t>(threads * SIDE * stride);
    auto* factors = allocated<float>(threads * 2 * x.groups * SIDE);
    bool has_memory = laid_out && x_sums && codes && factors;
#pragma omp parallel for
    for (int64_t tile = 0; tile < (has_memory ? row_tiles : 0); tile++) {
        int64_t row = tile * SIDE;
        for (int64_t step = 0; step < steps; step++)
            lay_out((const char*)x.integers + row * bytes, rows - row, bytes, step, laid_out + (tile * steps + step) * WORDS);
        for (int64_t group = 0; group < x.groups; group++)
            for (int64_t m = 0; m < SIDE; m++)
                x_sums[(tile * x.groups + group) * SIDE + m] = row + m < rows ? x.sums[(row + m) * x.groups + group] : 0;
    }
#pragma omp parallel if (has_memory)
    {
        int64_t thread = omp_get_thread_num();
        float* scales = factors + thread * 2 * x.groups * SIDE;
        Int4Tile some = {codes + thread * SIDE * stride, scales, scales + x.groups * SIDE, x.groups, stride};
        // 0 to 3 are of sums, 4 and 5 of a group's codes of 16 outputs, 6 and 7 of what 16 rows have for them.
        Tiles of_groups({16, 16, 16, 16, 16, 16, GROUP / 4, GROUP / 4}, {64, 64, 64, 64, GROUP, GROUP, 64, 64});
#pragma omp for schedule(dynamic)
        for (int64_t first = 0; first < (has_memory ? outputs : 0); first += SIDE) {
            int64_t count = outputs - first < SIDE ? outputs - first : SIDE;
            some.fill(w, first, count);
            for (int64_t tile = 0; tile < row_tiles; tile++) {
                alignas(64) float sums[SIDE][SIDE];
                some.multiply(laid_out + tile * steps * WORDS, x_sums + tile * x.groups * SIDE, sums);
                for (int64_t m = 0; m < SIDE && tile * SIDE + m < rows; m++)
                    finish_row(sums[m], tile * SIDE + m, first, count, finish);
            }
        }
    }
    free(laid_out);
    free(x_sums);
    free(codes);
    free(factors);
    return has_memory ? 0 : -1;
}

#else

constexpr int64_t LEAST_ROWS_IN_TILES = INT64_MAX;

static void arrange_for_tiles(int8_t*, int64_t, float*) {}

template <class Finish>
static int in_tiles(const Int4&, const Int8Rows&, int64_t, int64_t, const Finish&) {
    return -1;
}

#endif
