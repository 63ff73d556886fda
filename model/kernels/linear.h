// Linear layers: y = W x + b, of float32 or bfloat16 with sums in float32. Knows nothing of other formats.
#pragma once

#include "amx.h"
#include "product.h"

// Multiplied in float32.
template <class Weight>
struct Plain {
    using X = float;
    using W = Weight;
    using Sums = Floats;
    using Sum = float;
    static constexpr int BLOCK = PAIR;

    static void arrange(const Weight* row, int64_t inputs, X* to) {
        for (int64_t i = 0; i < inputs; i += BLOCK) {
            Floats first, second;
            load_some(row + i, inputs - i, first, second);
            store_pair(to + i, first, second);
        }
    }

    template <int ROWS, int OUTPUTS>
    static inline void step(Floats (&sums)[ROWS][OUTPUTS], const X* x, int64_t x_stride, const W* w, int64_t w_stride) {
        for (int n = 0; n < OUTPUTS; n++) {  // one output at a time: all weights at once are too many registers
            Floats first, second;
            load_pair(w + n * w_stride, first, second);
            for (int m = 0; m < ROWS; m++) {
                sums[m][n] = multiply_add(load<Floats>(x + m * x_stride), first, sums[m][n]);
                sums[m][n] = multiply_add(load<Floats>(x + m * x_stride + LANES), second, sums[m][n]);
            }
        }
    }
};

#if defined(__AVX512BF16__)
// bfloat16 by pairs, as they are: the products exact, each sum of a pair rounded, denormals taken as 0.
struct Pairs {
    using X = bfloat16;
    using W = bfloat16;
    using Sums = Floats;
    using Sum = float;
    static constexpr int BLOCK = PAIR;

    static void arrange(const bfloat16* row, int64_t inputs, X* to) {
        memcpy(to, row, inputs * sizeof *to);
        memset(to + inputs, 0, (rounded_up(inputs, BLOCK) - inputs) * sizeof *to);
    }

    template <int ROWS, int OUTPUTS>
    static inline void step(Floats (&sums)[ROWS][OUTPUTS], const X* x, int64_t x_stride, const W* w, int64_t w_stride) {
        __m512bh weights[OUTPUTS];
        for (int n = 0; n < OUTPUTS; n++) weights[n] = load<__m512bh>(w + n * w_stride);
        for (int m = 0; m < ROWS; m++) {
            __m512bh row = load<__m512bh>(x + m * x_stride);
            for (int n = 0; n < OUTPUTS; n++)
                sums[m][n] = (Floats)_mm512_dpbf16_ps((__m512)sums[m][n], row, weights[n]);
        }
    }
};
#endif

// Products in registers. `multiply` is -1 if there is no memory.
template <class T, class Format>
struct InRegisters {
    // How many outputs of a row of so many bytes are a block: whole tiles for any number of rows.
    static int64_t block(int64_t outputs, int64_t bytes) { return outputs_of_block(outputs, bytes, 24); }

    // x: [rows, inputs]; the rest as in `product`.
    template <class Fetch, class Finish>
    static int multiply(const T* x, int64_t rows, int64_t w_stride, int64_t inputs, int64_t outputs, int64_t block,
                        const Fetch& fetch, const Finish& finish) {
        int64_t x_stride = rounded_up(inputs, Format::BLOCK);
        auto* arranged = allocated<typename Format::X>(rows * x_stride);
        if (!arranged) return -1;
#pragma omp parallel for if (rows * inputs > LEAST_WORK)
        for (int64_t row = 0; row < rows; row++) Format::arrange(x + row * inputs, inputs, arranged + row * x_stride);
        product<Format>(arranged, x_stride, rows, w_stride, inputs, outputs, block, fetch, finish);
        free(arranged);
        return 0;
    }
};

// What this path has for each dtype.
template <class T>
struct Products : InRegisters<T, Plain<T>> {};
#if defined(__AMX_BF16__)
template <>
struct Products<bfloat16> : InTiles<bfloat16> {};
#elif defined(__AVX512BF16__)
template <>
struct Products<bfloat16> : InRegisters<bfloat16, Pairs> {};
#endif

// What becomes of sums of products, of one row or of some that follow each other: `sum + bias of the output`.
template <class T>
struct FinishLinear {
    using Out = T;
    const T* bias;  // or null
    T* out;         // [rows, outputs]
    int64_t outputs;

    template <class V>
    V of(V sum, int64_t, int64_t output) const {
        return bias ? sum + spread<V>(widened(bias[output])) : sum;
    }

    void operator()(int64_t row, int64_t output, float sum) const {
        narrow(of(sum, row, output), out[row * outputs + output]);
    }
};

// y = W x + b. x: [rows, inputs], w: [outputs, inputs], bias: [outputs] or null, out: [rows, outputs]. -1 if
// there is no memory.
template <class T>
static int linear(int64_t rows, const T* x, const T* w, const T* bias, T* out, int64_t inputs, int64_t outputs) {
    auto fetch = [=](int64_t first, int64_t) { return w + first * inputs; };
    int64_t block = Products<T>::block(outputs, inputs * sizeof(T));
    return Products<T>::multiply(x, rows, inputs, inputs, outputs, block, fetch, FinishLinear<T>{bias, out, outputs});
}
