// Products of int8 weights with rows that are rounded to int8, too: y = sx * sw * (integers' product) + b.
//
// Integers' sums are exact, so every path has the bits of model/quantization/int8.py. Up to 2^16 inputs.
#pragma once

#include "amx.h"
#include "product.h"

// What the weights, as they lie in memory, are multiplied with: a row of x in X. What a sum is too large by: OFFSET
// times the sum of the row.
struct Integers {
    using W = int8_t;
#if defined(__AVX512VNNI__)
    // The instruction takes the one factor unsigned: the weight plus 128, which is its upper bit turned.
    using X = int8_t;
    using Sums = Ints;
    static constexpr int BLOCK = 64, OFFSET = 128;
#elif defined(__AVX2__)
    using X = int16_t;
    using Sums = Ints;
    static constexpr int BLOCK = 16, OFFSET = 0;
#else
    using X = int16_t;
    using Sums = int32_t;
    static constexpr int BLOCK = 16, OFFSET = 0;
#endif
    using Sum = int32_t;

    template <int ROWS, int OUTPUTS>
    static inline void step(Sums (&sums)[ROWS][OUTPUTS], const X* x, int64_t x_stride, const W* w, int64_t w_stride) {
#if defined(__AVX512VNNI__)
        __m512i weights[OUTPUTS];
        for (int n = 0; n < OUTPUTS; n++)
            weights[n] = _mm512_xor_si512(load<__m512i>(w + n * w_stride), _mm512_set1_epi8((char)0x80));
        for (int m = 0; m < ROWS; m++) {
            __m512i row = load<__m512i>(x + m * x_stride);
            for (int n = 0; n < OUTPUTS; n++)
                sums[m][n] = (Ints)_mm512_dpbusd_epi32((__m512i)sums[m][n], weights[n], row);
        }
#elif defined(__AVX2__)
        __m256i weights[OUTPUTS];
        for (int n = 0; n < OUTPUTS; n++) weights[n] = _mm256_cvtepi8_epi16(load<__m128i>(w + n * w_stride));
        for (int m = 0; m < ROWS; m++) {
            __m256i row = load<__m256i>(x + m * x_stride);
            for (int n = 0; n < OUTPUTS; n++) sums[m][n] += (Ints)_mm256_madd_epi16(row, weights[n]);
        }
#else
        for (int m = 0; m < ROWS; m++)
            for (int n = 0; n < OUTPUTS; n++)
                for (int i = 0; i < BLOCK; i++) sums[m][n] += x[m * x_stride + i] * w[n * w_stride + i];
#endif
    }
};

// The size of a row's largest number, as bits, which are in the numbers' order, NaN above all.
template <class T>
static int32_t largest_bits(const T* x, int64_t size) {
    int32_t largest = 0;
    for (int64_t i = 0; i < size; i++) {
        float number = widened(x[i]);
        int32_t bits = load<int32_t>(&number) & 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

// A row in int8, its largest number at 127.5: 255 steps. Returns the step; NaN or infinite if a number is, and then the
// integers are 0, and so every product with the step is NaN. sum: of the integers.
template <class T, class X>
static float quantize_row(const T* x, int64_t size, X* to, int32_t* sum) {
    int32_t largest = largest_bits(x, size);
    float scale = load<float>(&largest) / 127.5f;
    scale = scale < 0x1p-126f ? 0x1p-126f : scale;  // a smaller one would not be exact
    int32_t total = 0;
    bool is_finite = largest < 0x7f800000;
    constexpr float LARGE = 12582912.0f;  // added to it, a number keeps its whole part, rounded to even, in the lower bits
    for (int64_t i = 0; i < size; i++) {
        float shifted = (is_finite ? widened(x[i]) : 0.0f) / scale + LARGE;
        int32_t whole = load<int32_t>(&shifted) - 0x4b400000;
        to[i] = whole > 127 ? 127 : whole;
        total += to[i];
    }
    *sum = total;
    return scale;
}

// What this path multiplies int8 with: rows of `stride(inputs)` elements, filled up with zeros. `multiply` is -1 if there
// is no memory; its sums are too large by OFFSET times that of the row.
#if defined(__AMX_INT8__)
struct IntegerProducts : InTiles<int8_t> {
    using X = int8_t;
    static constexpr int32_t OFFSET = 0;

    static int64_t stride(int64_t inputs) { return inputs; }

    template <class Fetch, class Finish>
    static int multiply(const X* x, int64_t rows, int64_t inputs, int64_t outputs, const Fetch& fetch, const Finish& finish) {
        return InTiles<X>::multiply(x, rows, inputs, inputs, outputs, block(outputs, inputs), fetch, finish);
    }
};
#else
struct IntegerProducts {
    using X = Integers::X;
    static constexpr int32_t OFFSET = Integers::OFFSET;

    static int64_t stride(int64_t inputs) { return rounded_up(inputs, Integers::BLOCK); }
    static int64_t block(int64_t outputs, int64_t bytes) { return outputs_of_block(outputs, bytes, 24); }

    template <class Fetch, class Finish>
    static int multiply(const X* x, int64_t rows, int64_t inputs, int64_t outputs, const Fetch& fetch, const Finish& finish) {
        product<Integers>(x, stride(inputs), rows, inputs, inputs, outputs, block(outputs, inputs), fetch, finish);
        return 0;
    }
};
#endif

// What was rounded in each row: the step between its integers, and their sum. Filled up to whole vectors.
struct Rounding {
    float* steps;
    int32_t* sums;

    // Null if there is no memory; to be freed by `free(steps)`.
    explicit Rounding(int64_t rows) {
        int64_t size = rounded_up(rows, LANES);
        steps = allocated<float>(2 * size);
        sums = (int32_t*)(steps + size);
        if (steps) memset(steps, 0, 2 * size * sizeof *steps);
    }
};

// What becomes of sums of products, as `FinishLinear`: `sum * step of the row * scale of the output + bias`, each time
// rounded.
template <class T>
struct FinishInteger {
    using Out = T;
    Rounding rounding;
    const float* scales;
    const T* bias;  // or null
    T* out;         // [rows, outputs]
    int64_t outputs;
    int32_t offset;

    template <class Whole>
    auto of(Whole sum, int64_t row, int64_t output) const {
        auto exact = floats(sum - load<Whole>(rounding.sums + row) * offset);
        using V = decltype(exact);
        V y = exact * load<V>(rounding.steps + row) * spread<V>(scales[output]);
        return bias ? stored<T>(y) + spread<V>(widened(bias[output])) : y;
    }

    void operator()(int64_t row, int64_t output, int32_t sum) const {
        narrow(of(sum, row, output), out[row * outputs + output]);
    }
};

// y = W x + b. x: [rows, inputs], w: [outputs, inputs] of int8, scales: [outputs], bias: [outputs] or null, out:
// [rows, outputs]. -1 if there is no memory.
template <class T>
static int linear_int8(int64_t rows, const T* x, const int8_t* w, const float* scales, const T* bias, T* out,
                       int64_t inputs, int64_t outputs) {
    using X = IntegerProducts::X;
    int64_t stride = IntegerProducts::stride(inputs);
    Rounding rounding(rows);
    auto* integers = allocated<X>(rows * stride);
    int result = rounding.steps && integers ? 0 : -1;
#pragma omp parallel for if (rows * inputs > LEAST_WORK)
    for (int64_t row = 0; row < (result ? 0 : rows); row++) {
        X* to = integers + row * stride;
        rounding.steps[row] = quantize_row(x + row * inputs, inputs, to, &rounding.sums[row]);
        memset(to + inputs, 0, (stride - inputs) * sizeof(X));
    }
    auto fetch = [=](int64_t first, int64_t) { return w + first * inputs; };
    FinishInteger<T> finish = {rounding, scales, bias, out, outputs, IntegerProducts::OFFSET};
    if (!result) result = IntegerProducts::multiply(integers, rows, inputs, outputs, fetch, finish);
    free(rounding.steps);
    free(integers);
    return result;
}
