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

// All eight tiles whole.
static void begin_tiles() {
    struct {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t bytes_of_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    MEMORY_IS_READ;
    _tile_loadconfig(&config);
}

// 16 rows of x as they are multiplied: word by word, and in it the rows side by side. to: [steps, 16 words, 16 rows].
static void lay_out(const char* x, int64_t rows, int64_t bytes, int64_t step, uint32_t* to) {
    for (int64_t word = 0; word < SIDE; word++)
        for (int64_t row = 0; row < SIDE; row++) {
            int64_t at = step * STEP + 4 * word, left = row < rows ? bytes - at : 0;
            uint32_t some = 0;
            if (left >= 4)
                some = load<uint32_t>(x + row * bytes + at);
            else if (left > 0)
                memcpy(&some, x + row * bytes + at, left);
            to[word * SIDE + row] = some;
        }
}

// Some of the weight's rows, and where a tile of them lies: they themselves, or at an edge a copy filled up with zeros.
struct Weights {
    const char* w;
    int64_t stride, bytes, outputs;  // of a row in memory, of its inputs, and how many rows
    char copy[SIDE][STEP];

    inline const char* tile(int64_t step, int64_t* apart) {
        int64_t left = bytes - step * STEP;
        *apart = stride;
        if (outputs >= SIDE && left >= STEP) return w + step * STEP;
        memset(copy, 0, sizeof copy);
        for (int64_t n = 0; n < SIDE && n < outputs; n++)
            memcpy(copy[n], w + n * stride + step * STEP, left < STEP ? left : STEP);
        *apart = STEP;
        return copy[0];
    }
};

// 32 outputs with 16 rows of x or, of two, with 32. sums: [x's tile][the weight's tile][output][row].
template <class T, int COLUMNS>
static void multiply_tiles(Weights (&w)[2], const uint32_t* x, int64_t steps,
                           typename TileSum<T>::Type (&sums)[COLUMNS][2][SIDE][SIDE]) {
    constexpr bool IS_FLOAT = sizeof(T) == 2;
    _tile_zero(0);
    _tile_zero(1);
    if (COLUMNS == 2) _tile_zero(2);
    if (COLUMNS == 2) _tile_zero(3);
    for (int64_t step = 0; step < steps; step++) {
        int64_t apart[2];
        const char* tiles[2] = {w[0].tile(step, &apart[0]), w[1].tile(step, &apart[1])};
        MEMORY_IS_READ;
        _tile_loadd(4, tiles[0], apart[0]);
        _tile_loadd(5, tiles[1], apart[1]);
        _tile_loadd(6, x + step * WORDS, STEP);
        if (IS_FLOAT) {
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 5, 6);
        } else {
            _tile_dpbssd(0, 4, 6);
            _tile_dpbssd(1, 5, 6);
        }
        if (COLUMNS == 1) continue;
        _tile_loadd(7, x + (steps + step) * WORDS, STEP);
        if (IS_FLOAT) {
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        } else {
            _tile_dpbssd(2, 4, 7);
            _tile_dpbssd(3, 5, 7);
        }
    }
    _tile_stored(0, sums[0][0], STEP);
    _tile_stored(1, sums[0][1], STEP);
    if (COLUMNS == 2) _tile_stored(2, sums[COLUMNS - 1][0], STEP);
    if (COLUMNS == 2) _tile_stored(3, sums[COLUMNS - 1][1], STEP);
    MEMORY_IS_READ;
}

// `left` outputs of the weight, 32 at most, with COLUMNS tiles of x; each sum goes to `finish(row, output, sum)`.
template <class T, int COLUMNS, class Finish>
static void finish_tiles(Weights (&w)[2], const uint32_t* x, int64_t steps, int64_t row, int64_t rows, int64_t output,
                         int64_t outputs, const Finish& finish) {
    typename TileSum<T>::Type sums[COLUMNS][2][SIDE][SIDE];
    multiply_tiles<T, COLUMNS>(w, x, steps, sums);
    for (int64_t m = row; m < row + COLUMNS * SIDE && m < rows; m++)
        for (int64_t n = 0; n < 2 * SIDE && n < outputs; n++)
            finish(m, output + n, sums[(m - row) / SIDE][n / SIDE][n % SIDE][(m - row) % SIDE]);
}

// As `InRegisters` in linear.h.
template <class T>
struct InTiles {
    static constexpr int64_t OUTPUTS = 2 * SIDE;

    template <class Fetch, class Finish>
    static int multiply(const T* x, int64_t rows, int64_t w_stride, int64_t inputs, int64_t outputs, int64_t block,
                        const Fetch& fetch, const Finish& finish) {
        int64_t bytes = inputs * sizeof(T), stride = w_stride * sizeof(T), steps = rounded_up(bytes, STEP) / STEP;
        int64_t row_tiles = rounded_up(rows, SIDE) / SIDE;
        auto* laid_out = allocated<uint32_t>(row_tiles * steps * WORDS);
        if (!laid_out) return -1;
#pragma omp parallel for collapse(2) if (rows * inputs > LEAST_WORK)
        for (int64_t tile = 0; tile < row_tiles; tile++)
            for (int64_t step = 0; step < steps; step++)
                lay_out((const char*)(x + tile * SIDE * inputs), rows - tile * SIDE, bytes, step,
                        laid_out + (tile * steps + step) * WORDS);
#pragma omp parallel if (rows * inputs * outputs > LEAST_WORK)
        {
            begin_tiles();
#pragma omp for schedule(dynamic)
            for (int64_t first = 0; first < outputs; first += block) {
                int64_t count = first + block < outputs ? block : outputs - first;
                auto* w = (const char*)fetch(first, first + count);
                for (int64_t n = 0; n < count; n += OUTPUTS) {
                    int64_t left = count - n, second = left < SIDE ? 0 : SIDE;
                    Weights weights[2] = {{w + n * stride, stride, bytes, left, {}},
                                          {w + (n + second) * stride, stride, bytes, left - SIDE, {}}};
                    for (int64_t tile = 0; tile < row_tiles; tile += 2) {
                        const uint32_t* columns = laid_out + tile * steps * WORDS;
                        if (tile + 1 < row_tiles)
                            finish_tiles<T, 2>(weights, columns, steps, tile * SIDE, rows, first + n, left, finish);
                        else
                            finish_tiles<T, 1>(weights, columns, steps, tile * SIDE, rows, first + n, left, finish);
                    }
                }
            }
            _tile_release();
        }
        free(laid_out);
        return 0;
    }
};

#endif
