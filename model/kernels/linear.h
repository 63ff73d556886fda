// Products of rows and a weight: y = W x + b. W lies in memory as in its checkpoint, [outputs, inputs].
//
// Each output is a sum over the inputs in one order: lane by lane in steps of BLOCK inputs, then over the
// lanes. That order has no knowledge of how many rows there are, which of them are computed together, or by
// which thread; so an output's bits depend on its row and its weights alone.
#pragma once

#include <cstdlib>

#include "vector.h"

// A format of weights: what it makes of a row of x, and one step of the sums.
//   X, W      an element of the arranged row and of the weight
//   BLOCK     inputs in a step; rows are filled up with zeros to whole steps
//   ELEMENTS  elements of W in a step
template <class Weight>
struct Plain {
    using X = float;
    using W = Weight;
    using Sums = Floats;
    using Sum = float;
    static constexpr int BLOCK = PAIR;
    static constexpr int ELEMENTS = BLOCK;

    static void arrange(const Weight* row, int64_t inputs, X* to) {
        for (int64_t i = 0; i < inputs; i += BLOCK) {
            Floats first, second;
            load_some(row + i, inputs - i, first, second);
            store_pair(to + i, first, second);
        }
    }

    template <int ROWS, int OUTPUTS>
    static inline void step(Floats (&sums)[ROWS][OUTPUTS], const X* x, int64_t x_stride, const W* w, int64_t w_stride) {
        Floats first[OUTPUTS], second[OUTPUTS];
        for (int n = 0; n < OUTPUTS; n++) load_pair(w + n * w_stride, first[n], second[n]);
        for (int m = 0; m < ROWS; m++) {
            Floats a = load<Floats>(x + m * x_stride), b = load<Floats>(x + m * x_stride + LANES);
            for (int n = 0; n < OUTPUTS; n++) sums[m][n] = multiply_add(a, first[n], sums[m][n]);
            for (int n = 0; n < OUTPUTS; n++) sums[m][n] = multiply_add(b, second[n], sums[m][n]);
        }
    }
};

// The sums of ROWS rows with OUTPUTS rows of the weight, kept in registers.
template <class Format, int ROWS, int OUTPUTS>
static void tile(const typename Format::X* x, int64_t x_stride, const typename Format::W* w, int64_t w_stride,
                 int64_t inputs, typename Format::Sum (&out)[ROWS][OUTPUTS]) {
    typename Format::Sums sums[ROWS][OUTPUTS] = {};
    int64_t whole = inputs / Format::BLOCK;
    for (int64_t i = 0; i < whole; i++)
        Format::template step<ROWS, OUTPUTS>(sums, x + i * Format::BLOCK, x_stride, w + i * Format::ELEMENTS, w_stride);
    if (inputs % Format::BLOCK) {  // the last step reads a copy: past the weight's end there may be no memory
        typename Format::W last[OUTPUTS][Format::ELEMENTS] = {};
        for (int n = 0; n < OUTPUTS; n++)
            memcpy(last[n], w + n * w_stride + whole * Format::ELEMENTS,
                   (w_stride - whole * Format::ELEMENTS) * sizeof last[n][0]);
        Format::template step<ROWS, OUTPUTS>(sums, x + whole * Format::BLOCK, x_stride, last[0], Format::ELEMENTS);
    }
    for (int m = 0; m < ROWS; m++)
        for (int n = 0; n < OUTPUTS; n++) out[m][n] = sum(sums[m][n]);
}

// A tile, and each sum handed to `finish(row, output, sum)`.
template <class Format, int ROWS, int OUTPUTS, class Finish>
static void finished(const typename Format::X* x, int64_t x_stride, const typename Format::W* w, int64_t w_stride,
                     int64_t inputs, int64_t row, int64_t output, const Finish& finish) {
    typename Format::Sum out[ROWS][OUTPUTS];
    tile<Format, ROWS, OUTPUTS>(x + row * x_stride, x_stride, w + output * w_stride, w_stride, inputs, out);
    for (int m = 0; m < ROWS; m++)
        for (int n = 0; n < OUTPUTS; n++) finish(row + m, output + n, out[m][n]);
}

// ROWS rows with outputs first ... last - 1.
template <class Format, int ROWS, int OUTPUTS, class Finish>
static void strip(const typename Format::X* x, int64_t x_stride, const typename Format::W* w, int64_t w_stride,
                  int64_t inputs, int64_t row, int64_t first, int64_t last, const Finish& finish) {
    for (; first + OUTPUTS <= last; first += OUTPUTS)
        finished<Format, ROWS, OUTPUTS>(x, x_stride, w, w_stride, inputs, row, first, finish);
    for (; first < last; first++)
        finished<Format, ROWS, 1>(x, x_stride, w, w_stride, inputs, row, first, finish);
}

constexpr int64_t BLOCK_BYTES = 128 * 1024;  // of the weight, that all rows pass before the next: half of a core's own cache
constexpr int64_t LEAST_WORK = 1 << 15;      // multiplications for which a second thread pays

// All rows with all outputs. x: [rows, x_stride], arranged; w: [outputs, w_stride].
template <class Format, class Finish>
static void product(const typename Format::X* x, int64_t x_stride, int64_t rows, const typename Format::W* w,
                    int64_t w_stride, int64_t inputs, int64_t outputs, const Finish& finish) {
    int64_t block = BLOCK_BYTES / (w_stride * sizeof(typename Format::W)) / 24 * 24;
    if (block < 24) block = 24;
    int64_t blocks = (outputs + block - 1) / block;
#pragma omp parallel for schedule(dynamic) if (rows * inputs * outputs > LEAST_WORK)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t first = b * block, last = first + block < outputs ? first + block : outputs;
        int64_t row = 0;
        for (; row + 4 <= rows; row += 4)
            strip<Format, 4, LANES == 16 ? 6 : 3>(x, x_stride, w, w_stride, inputs, row, first, last, finish);
        if (rows - row == 3) strip<Format, 3, 4>(x, x_stride, w, w_stride, inputs, row, first, last, finish);
        if (rows - row == 2) strip<Format, 2, 6>(x, x_stride, w, w_stride, inputs, row, first, last, finish);
        if (rows - row == 1) strip<Format, 1, 8>(x, x_stride, w, w_stride, inputs, row, first, last, finish);
    }
}

// Rows of x, each made what the format multiplies. Null if there is no memory; to be freed.
template <class Format, class T>
static typename Format::X* arranged(const T* x, int64_t rows, int64_t inputs, int64_t x_stride) {
    size_t bytes = rows * x_stride * sizeof(typename Format::X);
    auto* to = (typename Format::X*)aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!to) return nullptr;
#pragma omp parallel for if (rows * inputs > LEAST_WORK)
    for (int64_t row = 0; row < rows; row++) Format::arrange(x + row * inputs, inputs, to + row * x_stride);
    return to;
}

// y = W x + b. x: [rows, inputs], w: [outputs, inputs], bias: [outputs] or null, out: [rows, outputs]. -1 if
// there is no memory.
template <class T>
static int linear(const T* x, const T* w, const T* bias, T* out, int64_t rows, int64_t inputs, int64_t outputs) {
    using Format = Plain<T>;
    int64_t x_stride = (inputs + Format::BLOCK - 1) / Format::BLOCK * Format::BLOCK;
    auto* rows_of_x = arranged<Format>(x, rows, inputs, x_stride);
    if (!rows_of_x) return -1;
    product<Format>(rows_of_x, x_stride, rows, w, inputs, inputs, outputs, [=](int64_t row, int64_t output, float sum) {
        narrow(bias ? sum + widened(bias[output]) : sum, out[row * outputs + output]);
    });
    free(rows_of_x);
    return 0;
}
