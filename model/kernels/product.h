// Products of rows and a weight, in registers. W lies in memory as in its checkpoint, [outputs, inputs].
//
// Each output is a sum over the inputs in one order: lane by lane in steps of BLOCK inputs, then over the
// lanes. That order has no knowledge of how many rows there are, which of them are computed together, or by
// which thread; so an output's bits depend on its row and its weights alone.
//
// A Format says what is multiplied, and how one step of the sums is done:
//   X, W      an element of the arranged row and of the weight
//   Sums, Sum a vector of sums, and the one number that they become
//   BLOCK     inputs in a step; rows are filled up with zeros to whole steps
#pragma once

#include <omp.h>

#include <cstdlib>

#include "vector.h"

constexpr int64_t BLOCK_BYTES = 128 * 1024;  // of the weight, that all rows pass before the next: in a core's own cache
constexpr int64_t LEAST_WORK = 1 << 15;      // multiplications for which a second thread pays

// How many outputs are a block, of so many bytes each: a multiple of `whole`, and a few blocks for each thread. A smaller
// one is taken if the threads, which take one after another, end sooner for it, by a fiftieth at least.
static inline int64_t outputs_of_block(int64_t outputs, int64_t bytes, int64_t whole, int64_t block_bytes = BLOCK_BYTES) {
    int64_t threads = omp_get_max_threads(), cached = block_bytes / bytes, fair = outputs / (4 * threads);
    int64_t largest = (cached < fair ? cached : fair) / whole * whole, best = whole, soonest = INT64_MAX / 64;
    for (int64_t block = largest; block >= whole && 2 * block >= largest; block -= whole) {
        int64_t blocks = (outputs + block - 1) / block, in_turn = (blocks + threads - 1) / threads * block;
        if (in_turn * 50 < soonest * 49) best = block, soonest = in_turn;
        if (threads == 1) break;
    }
    return best;
}

static inline int64_t rounded_up(int64_t size, int64_t step) { return (size + step - 1) / step * step; }

// Memory for so many elements, to be freed; null if there is none.
template <class Element>
static Element* allocated(int64_t count) {
    return (Element*)aligned_alloc(64, rounded_up(count * sizeof(Element) + 1, 64));
}

// The sums of ROWS rows with OUTPUTS rows of the weight, kept in registers.
template <class Format, int ROWS, int OUTPUTS>
static void tile(const typename Format::X* x, int64_t x_stride, const typename Format::W* w, int64_t w_stride,
                 int64_t inputs, typename Format::Sum (&out)[ROWS][OUTPUTS]) {
    typename Format::Sums sums[ROWS][OUTPUTS] = {};
    int64_t whole = inputs / Format::BLOCK;
    for (int64_t i = 0; i < whole; i++) {
        if (ROWS == 1) {  // waits for memory: what the next tile will read is called, in the order of its addresses
            constexpr int BYTES = OUTPUTS * Format::BLOCK * sizeof *w;
            const char* next = (const char*)(w + OUTPUTS * w_stride) + i * BYTES;
            for (int line = 0; line < BYTES; line += 64) __builtin_prefetch(next + line);
        }
        Format::template step<ROWS, OUTPUTS>(sums, x + i * Format::BLOCK, x_stride, w + i * Format::BLOCK, w_stride);
    }
    if (int64_t rest = inputs % Format::BLOCK) {  // of which a copy is read: past the weight's end there may be no memory
        typename Format::W last[OUTPUTS][Format::BLOCK] = {};
        for (int n = 0; n < OUTPUTS; n++) memcpy(last[n], w + n * w_stride + whole * Format::BLOCK, rest * sizeof *w);
        Format::template step<ROWS, OUTPUTS>(sums, x + whole * Format::BLOCK, x_stride, last[0], Format::BLOCK);
    }
    for (int m = 0; m < ROWS; m++)
        for (int n = 0; n < OUTPUTS; n++) out[m][n] = sum(sums[m][n]);
}

// ROWS rows with `count` rows of the weight; each sum is handed to `finish(row, output, sum)`.
template <class Format, int ROWS, int OUTPUTS, class Finish>
static void strip(const typename Format::X* x, int64_t x_stride, const typename Format::W* w, int64_t w_stride,
                  int64_t inputs, int64_t row, int64_t first, int64_t count, const Finish& finish) {
    x += row * x_stride;
    int64_t n = 0;
    for (; n + OUTPUTS <= count; n += OUTPUTS) {
        typename Format::Sum out[ROWS][OUTPUTS];
        tile<Format, ROWS, OUTPUTS>(x, x_stride, w + n * w_stride, w_stride, inputs, out);
        for (int i = 0; i < ROWS; i++)
            for (int j = 0; j < OUTPUTS; j++) finish(row + i, first + n + j, out[i][j]);
    }
    for (; n < count; n++) {
        typename Format::Sum out[ROWS][1];
        tile<Format, ROWS, 1>(x, x_stride, w + n * w_stride, w_stride, inputs, out);
        for (int i = 0; i < ROWS; i++) finish(row + i, first + n, out[i][0]);
    }
}


// All rows with all outputs. x: [rows, x_stride], arranged. fetch(first, last): rows of the weight, w_stride
// elements each; called once for each block of outputs, by the thread that computes it.
template <class Format, class Fetch, class Finish>
static void product(const typename Format::X* x, int64_t x_stride, int64_t rows, int64_t w_stride, int64_t inputs,
                    int64_t outputs, int64_t block, const Fetch& fetch, const Finish& finish) {
#pragma omp parallel for schedule(dynamic) if (rows * inputs * outputs > LEAST_WORK)
    for (int64_t first = 0; first < outputs; first += block) {
        int64_t count = first + block < outputs ? block : outputs - first;
        const typename Format::W* w = fetch(first, first + count);
        int64_t row = 0;
        for (; row + 4 <= rows; row += 4)
            strip<Format, 4, LANES == 16 ? 6 : 3>(x, x_stride, w, w_stride, inputs, row, first, count, finish);
        if (rows - row == 3) strip<Format, 3, 4>(x, x_stride, w, w_stride, inputs, row, first, count, finish);
        if (rows - row == 2) strip<Format, 2, 6>(x, x_stride, w, w_stride, inputs, row, first, count, finish);
        if (rows - row == 1) strip<Format, 1, 8>(x, x_stride, w, w_stride, inputs, row, first, count, finish);
    }
}
