// What happens to each row by itself between the products: norms, activations, rotations.
#pragma once

#include "functions.h"

constexpr int64_t LEAST_NUMBERS = 1 << 14;  // for which a second thread pays

// out = act(x), times factor if there is one, computed in float32 and rounded once.
template <class T, Activation KIND>
static void activate_row(const T* x, const T* factor, T* out, int64_t size) {
    for (int64_t i = 0; i < size; i += PAIR) {
        Floats a, b;
        load_some(x + i, size - i, a, b);
        a = activated<KIND>(a);
        b = activated<KIND>(b);
        if (factor) {
            Floats c, d;
            load_some(factor + i, size - i, c, d);
            a = a * c;
            b = b * d;
        }
        store_some(out + i, size - i, a, b);
    }
}

// x, factor (or null), out: [rows, size]. kind: an Activation.
template <class T>
static int activate(int64_t rows, const T* x, const T* factor, T* out, int32_t kind, int64_t size) {
    constexpr void (*KINDS[])(const T*, const T*, T*, int64_t) = {
        activate_row<T, RELU>, activate_row<T, GELU>, activate_row<T, GELU_TANH>, activate_row<T, SILU>,
        activate_row<T, QUICK_GELU>};
#pragma omp parallel for if (rows * size > LEAST_NUMBERS)
    for (int64_t row = 0; row < rows; row++)
        KINDS[kind](x + row * size, factor ? factor + row * size : nullptr, out + row * size, size);
    return 0;
}

// The sum over a row of what `term` makes of each number; what fills up the last pair must come out as 0.
template <class T, class Term>
static inline float sum_over(const T* x, int64_t size, const Term& term) {
    Floats first = {}, second = {};
    for (int64_t i = 0; i + PAIR <= size; i += PAIR) {
        Floats a, b;
        load_pair(x + i, a, b);
        first += term(a);
        second += term(b);
    }
    float rest = 0;
    for (int64_t i = size / PAIR * PAIR; i < size; i++) rest += term(all(widened(x[i])))[0];
    return sum(first + second) + rest;
}

// (x - mean) / sqrt(variance + eps) * weight + bias; weight and bias may be null.
template <class T>
static void layer_norm_row(const T* x, const T* weight, const T* bias, T* out, int64_t size, float eps) {
    float mean = sum_over(x, size, [](Floats a) { return a; }) / size;
    float variance = sum_over(x, size, [=](Floats a) { return (a - all(mean)) * (a - all(mean)); }) / size;
    float scale = 1.0f / __builtin_sqrtf(variance + eps);
    for (int64_t i = 0; i < size; i += PAIR) {
        Floats a, b, c, d;
        load_some(x + i, size - i, a, b);
        a = (a - all(mean)) * all(scale);
        b = (b - all(mean)) * all(scale);
        if (weight) {
            load_some(weight + i, size - i, c, d);
            a = a * c;
            b = b * d;
        }
        if (bias) {
            load_some(bias + i, size - i, c, d);
            a = a + c;
            b = b + d;
        }
        store_some(out + i, size - i, a, b);
    }
}

template <class T>
static int layer_norm(int64_t rows, const T* x, const T* weight, const T* bias, T* out, float eps, int64_t size) {
#pragma omp parallel for if (rows * size > LEAST_NUMBERS)
    for (int64_t row = 0; row < rows; row++)
        layer_norm_row(x + row * size, weight, bias, out + row * size, size, eps);
    return 0;
}

// x / sqrt(mean of squares + eps) * (offset + weight).
template <class T>
static void rms_norm_row(const T* x, const T* weight, T* out, int64_t size, float eps, float offset) {
    float mean = sum_over(x, size, [](Floats a) { return a * a; }) / size;
    float scale = 1.0f / __builtin_sqrtf(mean + eps);
    for (int64_t i = 0; i < size; i += PAIR) {
        Floats a, b, c, d;
        load_some(x + i, size - i, a, b);
        load_some(weight + i, size - i, c, d);
        store_some(out + i, size - i, a * all(scale) * (all(offset) + c), b * all(scale) * (all(offset) + d));
    }
}

template <class T>
static int rms_norm(int64_t rows, const T* x, const T* weight, T* out, float eps, float offset, int64_t size) {
#pragma omp parallel for if (rows * size > LEAST_NUMBERS)
    for (int64_t row = 0; row < rows; row++)
        rms_norm_row(x + row * size, weight, out + row * size, size, eps, offset);
    return 0;
}

// One head's first 2 * pairs numbers turned, the others as they are: neighbours, or those `pairs` apart. cos, sin: [pairs].
template <class T, bool INTERLEAVED>
static void rotate_head(const T* x, const float* cos, const float* sin, T* out, int64_t size, int64_t pairs) {
    constexpr int64_t APART = INTERLEAVED ? 2 : 1;
    int64_t other = INTERLEAVED ? 1 : pairs;
#pragma GCC ivdep
    for (int64_t i = 0; i < pairs; i++) {
        float a = widened(x[i * APART]), b = widened(x[i * APART + other]);
        narrow(a * cos[i] - b * sin[i], out[i * APART]);
        narrow(b * cos[i] + a * sin[i], out[i * APART + other]);
    }
    memcpy(out + 2 * pairs, x + 2 * pairs, (size - 2 * pairs) * sizeof(T));
}

// x, out: [rows, heads, size]; cos, sin: [any position, pairs]; positions: [rows].
template <class T>
static int rotate(int64_t rows, const T* x, const float* cos, const float* sin, const int64_t* positions, T* out,
                  int32_t interleaved, int64_t heads, int64_t size, int64_t pairs) {
    auto* rotated = interleaved ? rotate_head<T, true> : rotate_head<T, false>;
#pragma omp parallel for if (rows * heads * size > LEAST_NUMBERS)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t head = row * heads, at = positions[row] * pairs; head < (row + 1) * heads; head++)
            rotated(x + head * size, cos + at, sin + at, out + head * size, size, pairs);
    return 0;
}

// out = x + scale * y, of which each is rounded. All are [rows, size].
template <class T>
static int add(int64_t rows, const T* x, const T* y, T* out, float scale, int64_t size) {
#pragma omp parallel for if (rows * size > LEAST_NUMBERS)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = row * size; i < (row + 1) * size; i += PAIR) {
            int64_t left = (row + 1) * size - i;
            Floats a, b, c, d;
            load_some(x + i, left, a, b);
            load_some(y + i, left, c, d);
            if (scale != 1) {
                T scaled[PAIR];
                store_pair(scaled, c * all(scale), d * all(scale));
                load_pair(scaled, c, d);
            }
            store_some(out + i, left, a + c, b + d);
        }
    return 0;
}
