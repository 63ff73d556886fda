// Products in the processor's tiles (AMX), of bfloat16 with sums in float32 and of int8 with exact ones.
//
// A tile is 16 rows of 64 bytes. The weight's are loaded as they lie in memory; the rows of x are laid out anew for
// each product, 16 to a tile, word by word. A sum is of its own row and output alone, 64 bytes of inputs after 64.
#pragma once

#include "product.h"

#if defined(__AMX_TILE__)

constexpr int64_t SIDE = 16;          // of a tile: outputs, rows of x, and words of 4 bytes
constexpr int64_t STEP = 4 * SIDE;    // bytes of inputs
constexpr int64_t WORDS = SIDE * SIDE;

template <class T>
struct TileSum {
    using Type = float;
};
template <>
struct TileSum<int8_t> {
    using Type = int32_t;
};

// The intrinsics do not tell the compiler which memory they read.
#define MEMORY_IS_READ asm volatile("" ::: "memory")

// The shapes of a thread's eight tiles, while this lasts: how many rows, and the bytes of each.
struct Tiles {
    Tiles(const uint8_t (&rows)[8], const uint8_t (&bytes)[8]) {
        struct {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t bytes_of_row[16] = {};
            uint8_t rows[16] = {};
        } config;
        for (int i = 0; i < 8; i++) {
            config.rows[i] = rows[i];
            config.bytes_of_row[i] = bytes[i];
        }
        MEMORY_IS_READ;
        _tile_loadconfig(&config);
    }
    ~Tiles() { _tile_release(); }
};

// A square of words, each row of it becoming a column: within 4 x 4 words, then these among each other.
static inline void transpose(__m512i (&square)[SIDE]) {
    __m512i pairs[SIDE], fours[SIDE];
    for (int i = 0; i < SIDE; i += 2) {
        pairs[i] = _mm512_unpacklo_epi32(square[i], square[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(square[i], square[i + 1]);
    }
    for (int i = 0; i < SIDE; i += 4)
        for (int half = 0; half < 2; half++) {
            fours[i + 2 * half] = _mm512_unpacklo_epi64(pairs[i + half], pairs[i + half + 2]);
            fours[i + 2 * half + 1] = _mm512_unpackhi_epi64(pairs[i + half], pairs[i + half + 2]);
        }
    for (int i = 0; i < 4; i++) {  // a quarter of fours[i + 4 * k] has four rows of column i, i + 4, i + 8 or i + 12
        __m512i even[2], odd[2];
        for (int half = 0; half < 2; half++) {
            even[half] = _mm512_shuffle_i32x4(fours[i + 8 * half], fours[i + 8 * half + 4], 0x88);
            odd[half] = _mm512_shuffle_i32x4(fours[i + 8 * half], fours[i + 8 * half + 4], 0xdd);
        }
        square[i] = _mm512_shuffle_i32x4(even[0], even[1], 0x88);
        square[i + 4] = _mm512_shuffle_i32x4(odd[0], odd[1], 0x88);
        square[i + 8] = _mm512_shuffle_i32x4(even[0], even[1], 0xdd);
        square[i + 12] = _mm512_shuffle_i32x4(odd[0], odd[1], 0xdd);
    }
}

// 16 rows of x as they are multiplied: word by word, and in it the rows side by side. to: [16 words, 16 rows].
static void lay_out(const char* x, int64_t rows, int64_t bytes, int64_t step, uint32_t* to) {
    int64_t left = bytes - step * STEP;
    __m512i square[SIDE];
    x += step * STEP;
    if (rows >= SIDE && left >= STEP)
        for (int64_t row = 0; row < SIDE; row++) square[row] = load<__m512i>(x + row * bytes);
    else
        for (int64_t row = 0; row < SIDE; row++) {
            char some[STEP] = {};
            if (row < rows) memcpy(some, x + row * bytes, left < STEP ? left : STEP);
            square[row] = load<__m512i>(some);
        }
    transpose(square);
    for (int64_t word = 0; word < SIDE; word++) store(to + word * SIDE, square[word]);
}

// Some of the weight's rows: where they lie, how far apart, the bytes of a row's inputs, and how many rows.
struct Weights {
    const char* w;
    int64_t stride, bytes, outputs;

    // How many steps can be read where they lie.
    int64_t whole() const { return outputs >= SIDE ? bytes / STEP : 0; }

    // A copy of a step, filled up with zeros.
    void copy(int64_t step, char (&to)[SIDE][STEP]) const {
        int64_t left = bytes - step * STEP;
        memset(to, 0, sizeof to);
        for (int64_t n = 0; n < SIDE && n < outputs; n++)
            memcpy(to[n], w + n * stride + step * STEP, left < STEP ? left : STEP);
    }
};

// Adds one step's products: of two tiles of the weight with one of x, or two.
template <class T, int COLUMNS>
static inline void multiply_step(const char* first, const char* second, int64_t apart, const uint32_t* x, int64_t next_x) {
    constexpr bool IS_FLOAT = sizeof(T) == 2;
    _tile_loadd(4, first, apart);
    _tile_loadd(5, second, apart);
    _tile_loadd(6, x, STEP);
    if (COLUMNS == 2) _tile_loadd(7, x + next_x, STEP);
    if (IS_FLOAT) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 5, 6);
        if (COLUMNS == 2) _tile_dpbf16ps(2, 4, 7);
        if (COLUMNS == 2) _tile_dpbf16ps(3, 5, 7);
    } else {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 5, 6);
        if (COLUMNS == 2) _tile_dpbssd(2, 4, 7);
        if (COLUMNS == 2) _tile_dpbssd(3, 5, 7);
    }
}

// What is called into the core's second cache meanwhile: so many lines with each step.
struct Ahead {
    const char* from;
    int64_t lines;
};

// 32 outputs with 16 rows of x or, of two, with 32. sums: [x's tile][the weight's tile][output][row].
template <class T, int COLUMNS>
static void multiply_tiles(const Weights (&w)[2], const uint32_t* x, int64_t steps, Ahead ahead,
                           typename TileSum<T>::Type (&sums)[COLUMNS][2][SIDE][SIDE]) {
    _tile_zero(0);
    _tile_zero(1);
    if (COLUMNS == 2) _tile_zero(2);
    if (COLUMNS == 2) _tile_zero(3);
    const char *first = w[0].w, *second = w[1].w;
    int64_t stride = w[0].stride, step = 0, whole = w[1].whole();
    MEMORY_IS_READ;
    for (; step < whole; step++) {
        for (int64_t line = 0; line < ahead.lines; line++, ahead.from += STEP) __builtin_prefetch(ahead.from, 0, 2);
        multiply_step<T, COLUMNS>(first + step * STEP, second + step * STEP, stride, x + step * WORDS, steps * WORDS);
    }
    for (; step < steps; step++) {
        alignas(64) char copies[2][SIDE][STEP];
        w[0].copy(step, copies[0]);
        w[1].copy(step, copies[1]);
        MEMORY_IS_READ;
        multiply_step<T, COLUMNS>(copies[0][0], copies[1][0], STEP, x + step * WORDS, steps * WORDS);
    }
    _tile_stored(0, sums[0][0], STEP);
    _tile_stored(1, sums[0][1], STEP);
    if (COLUMNS == 2) _tile_stored(2, sums[COLUMNS - 1][0], STEP);
    if (COLUMNS == 2) _tile_stored(3, sums[COLUMNS - 1][1], STEP);
    MEMORY_IS_READ;
}

// Hands on a tile of x's sums with `left` outputs, 32 at most. Those of all 32 in vectors of rows, which are turned about
// only as what they become: words of two bfloat16, or of one float32.
template <class Sum, class Finish>
static inline void finish_sums(const Sum (&sums)[2][SIDE][SIDE], int64_t row, int64_t rows, int64_t output, int64_t left,
                               const Finish& finish) {
    typedef Sum Vector __attribute__((vector_size(4 * SIDE)));
    int64_t count = rows - row < SIDE ? rows - row : SIDE;
    if (left < 2 * SIDE) {
        for (int64_t n = 0; n < left; n++)
            for (int64_t m = 0; m < count; m++) finish(row + m, output + n, sums[n / SIDE][n % SIDE][m]);
        return;
    }
    constexpr int64_t OF_WORD = 4 / sizeof(typename Finish::Out);
    auto of = [&](int64_t n) { return finish.of(load<Vector>(sums[n / SIDE][n % SIDE]), row, output + n); };
    for (int64_t begin = 0; begin < 2 * SIDE; begin += OF_WORD * SIDE) {
        __m512i square[SIDE];
        for (int64_t i = 0, n = begin; i < SIDE; i++, n += OF_WORD)
            square[i] = OF_WORD == 2 ? (__m512i)paired(of(n), of(n + 1)) : (__m512i)of(n);
        transpose(square);
        for (int64_t m = 0; m < count; m++) store(finish.out + (row + m) * finish.outputs + output + begin, square[m]);
    }
}

// `left` outputs of the weight, 32 at most, with COLUMNS tiles of x.
template <class T, int COLUMNS, class Finish>
static void finish_tiles(const Weights (&w)[2], const uint32_t* x, int64_t steps, Ahead ahead, int64_t row, int64_t rows,
                         int64_t output, int64_t left, const Finish& finish) {
    alignas(64) typename TileSum<T>::Type sums[COLUMNS][2][SIDE][SIDE];
    multiply_tiles<T, COLUMNS>(w, x, steps, ahead, sums);
    for (int column = 0; column < COLUMNS; column++)
        if (row + column * SIDE < rows) finish_sums(sums[column], row + column * SIDE, rows, output, left, finish);
}

// As `InRegisters` in linear.h.
template <class T>
struct InTiles {
    static constexpr int64_t LEAST_PAIRS = 5;  // of tiles of outputs, that 32 rows of x pass

    // All rows pass a block from the core's second cache, of which it takes half; x passes it 32 rows at a time, from the
    // cache that cores share. The next 32 are called ahead, if a block has so many outputs that few lines come at a time.
    static int64_t block(int64_t outputs, int64_t bytes) { return outputs_of_block(outputs, bytes, 2 * SIDE, 1 << 20); }

    template <class Fetch, class Finish>
    static int multiply(const T* x, int64_t rows, int64_t w_stride, int64_t inputs, int64_t outputs, int64_t block,
                        const Fetch& fetch, const Finish& finish) {
        int64_t bytes = inputs * sizeof(T), stride = w_stride * sizeof(T), steps = rounded_up(bytes, STEP) / STEP;
        int64_t row_tiles = rounded_up(rows, SIDE) / SIDE, pairs = rounded_up(block, 2 * SIDE) / (2 * SIDE);
        auto* laid_out = allocated<uint32_t>(row_tiles * steps * WORDS);
        if (!laid_out) return -1;
#pragma omp parallel for collapse(2) if (rows * inputs > LEAST_WORK)
        for (int64_t tile = 0; tile < row_tiles; tile++)
            for (int64_t step = 0; step < steps; step++)
                lay_out((const char*)(x + tile * SIDE * inputs), rows - tile * SIDE, bytes, step,
                        laid_out + (tile * steps + step) * WORDS);
#pragma omp parallel if (rows * inputs * outputs > LEAST_WORK)
        {
            Tiles whole({16, 16, 16, 16, 16, 16, 16, 16}, {64, 64, 64, 64, 64, 64, 64, 64});
#pragma omp for schedule(dynamic)
            for (int64_t first = 0; first < outputs; first += block) {
                int64_t count = first + block < outputs ? block : outputs - first;
                auto* w = (const char*)fetch(first, first + count);
                for (int64_t tile = 0; tile < row_tiles; tile += 2) {
                    const uint32_t* columns = laid_out + tile * steps * WORDS;
                    bool is_ahead = tile + 4 <= row_tiles && pairs >= LEAST_PAIRS;
                    Ahead ahead = {(const char*)(columns + 2 * steps * WORDS), is_ahead ? (2 * SIDE + pairs - 1) / pairs : 0};
                    for (int64_t n = 0; n < count; n += 2 * SIDE, ahead.from += steps * ahead.lines * STEP) {
                        int64_t left = count - n, second = left < SIDE ? 0 : SIDE;
                        Weights weights[2] = {{w + n * stride, stride, bytes, left},
                                              {w + (n + second) * stride, stride, bytes, left - SIDE}};
                        if (tile + 1 < row_tiles)
                            finish_tiles<T, 2>(weights, columns, steps, ahead, tile * SIDE, rows, first + n, left, finish);
                        else
                            finish_tiles<T, 1>(weights, columns, steps, ahead, tile * SIDE, rows, first + n, left, finish);
                    }
                }
            }
        }
        free(laid_out);
        return 0;
    }
};

#endif
