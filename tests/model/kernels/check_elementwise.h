// Norms, activations, sums and rotations against their formulas in float64; and each row with its bits alone.
#pragma once

#include <cmath>

#include "check_numbers.h"

// What the rounding to T, of a number and of what it is computed from, may be off by.
template <class T>
static constexpr double unit_of() {
    return sizeof(T) == 4 ? 0x1p-23 : 0x1p-8;
}

// Those of functions.h, without what is lost in the tails: of GELU's sum and of tanh's.
static double activated(int kind, double x) {
    double steep = kind == 2 ? std::sqrt(8 / M_PI) * (x + 0.044715 * x * x * x) : kind == 4 ? 1.702 * x : x;
    if (kind == 0) return std::fmax(x, 0);
    return kind == 1 ? x * std::erfc(-x * M_SQRT1_2) / 2 : x / (1 + std::exp(-steep));
}

// Within 1e-6 of the value, and as much again for each power of e by which it is less than its argument.
template <class T>
static bool activation_is_right(Kernel* activate, Random& random, int64_t rows, int64_t size, bool has_factor) {
    auto x = random.numbers<T>(rows * size), factor = random.numbers<T>(rows * size);
    for (T& number : x) narrow(4 * widened(number), number);
    vector<T> out(rows * size), row(size);
    for (int kind = 0; kind < 5; kind++) {
        call(activate, rows, x.data(), has_factor ? factor.data() : nullptr, out.data(), kind, size);
        for (int64_t i = 0; i < rows * size; i++) {
            double number = widened(x[i]), y = activated(kind, number), times = has_factor ? widened(factor[i]) : 1;
            double powers = y == 0 ? 0 : std::fabs(std::log(std::fabs(y / number)));
            double error = std::fabs(widened(out[i]) - y * times);
            if (!(error <= (1e-6 * (1 + powers) + unit_of<T>()) * std::fabs(y * times) + 1e-36)) return false;
        }
        for (int64_t m = 0; m < rows; m++) {
            call(activate, 1, x.data() + m * size, has_factor ? factor.data() + m * size : nullptr, row.data(), kind, size);
            if (memcmp(row.data(), out.data() + m * size, size * sizeof(T))) return false;
        }
    }
    return true;
}

// The bits of the formula.
template <class T>
static bool sum_is_right(Kernel* add, Random& random, int64_t rows, int64_t size, float scale) {
    auto x = random.numbers<T>(rows * size), y = random.numbers<T>(rows * size);
    vector<T> out(rows * size), expected(rows * size);
    call(add, rows, x.data(), y.data(), out.data(), scale, size);
    for (int64_t i = 0; i < rows * size; i++) {
        narrow(scale * widened(y[i]), expected[i]);
        narrow(widened(x[i]) + widened(expected[i]), expected[i]);
    }
    return same(out, expected);
}

// Both norms, within so many roundings of float32 of the row's largest number: 200 of the one, 50 of the other.
template <class T>
static bool norms_are_right(Kernel* layer_norm, Kernel* rms_norm, Random& random, int64_t rows, int64_t size,
                            bool has_weight) {
    constexpr float EPS = 1e-3f, OFFSET = 1;
    auto x = random.numbers<T>(rows * size), weight = random.numbers<T>(size), bias = random.numbers<T>(size);
    T *w = has_weight ? weight.data() : nullptr, *b = has_weight ? bias.data() : nullptr;
    vector<T> out[2] = {vector<T>(rows * size), vector<T>(rows * size)}, row(size);
    call(layer_norm, rows, x.data(), w, b, out[0].data(), EPS, size);
    call(rms_norm, rows, x.data(), weight.data(), out[1].data(), EPS, OFFSET, size);
    for (int64_t m = 0; m < rows; m++) {
        const T* numbers = x.data() + m * size;
        double mean = 0, squares = 0, variance = 0;
        for (int64_t i = 0; i < size; i++) mean += widened(numbers[i]) / (double)size;
        for (int64_t i = 0; i < size; i++) {
            squares += std::pow(widened(numbers[i]), 2) / size;
            variance += std::pow(widened(numbers[i]) - mean, 2) / size;
        }
        std::vector<double> expected[2];
        double largest[2] = {};
        for (int64_t i = 0; i < size; i++) {
            double normed = (widened(numbers[i]) - mean) / std::sqrt(variance + EPS);
            expected[0].push_back(has_weight ? normed * widened(weight[i]) + widened(bias[i]) : normed);
            expected[1].push_back(widened(numbers[i]) / std::sqrt(squares + EPS) * (OFFSET + widened(weight[i])));
            // What is added to it, and what it is taken from, are rounded, too.
            largest[0] = std::fmax(largest[0], std::fabs(expected[0][i]) + std::fabs(widened(bias[i])) + std::fabs(normed));
            largest[1] = std::fmax(largest[1], std::fabs(expected[1][i]));
        }
        for (int kind = 0; kind < 2; kind++)
            for (int64_t i = 0; i < size; i++) {
                double error = std::fabs(widened(out[kind][m * size + i]) - expected[kind][i]);
                double bound = (kind ? 50 : 200) * 0x1p-24 * largest[kind] + unit_of<T>() * std::fabs(expected[kind][i]);
                if (!(error <= bound)) return false;
            }
        call(layer_norm, 1, numbers, w, b, row.data(), EPS, size);
        if (memcmp(row.data(), out[0].data() + m * size, size * sizeof(T))) return false;
        call(rms_norm, 1, numbers, weight.data(), row.data(), EPS, OFFSET, size);
        if (memcmp(row.data(), out[1].data() + m * size, size * sizeof(T))) return false;
    }
    return true;
}

// Within four roundings of float32 of the two numbers; what is beyond the pairs, with its bits.
template <class T>
static bool rotation_is_right(Kernel* rotate, Random& random, int64_t rows, int64_t size, int64_t pairs,
                              bool is_interleaved) {
    constexpr int64_t HEADS = 3, POSITIONS = 5;
    auto x = random.numbers<T>(rows * HEADS * size);
    auto cos = random.numbers<float>(POSITIONS * pairs), sin = random.numbers<float>(POSITIONS * pairs);
    vector<int64_t> positions(rows);
    for (int64_t row = 0; row < rows; row++) positions[row] = POSITIONS - 1 - row % POSITIONS;
    vector<T> out(x.size());
    call(rotate, rows, x.data(), cos.data(), sin.data(), positions.data(), out.data(), is_interleaved, HEADS, size, pairs);
    int64_t apart = is_interleaved ? 2 : 1, other = is_interleaved ? 1 : pairs;
    for (int64_t head = 0; head < rows * HEADS; head++) {
        const T *from = x.data() + head * size, *found = out.data() + head * size;
        for (int64_t i = 0; i < pairs; i++) {
            int64_t at = positions[head / HEADS] * pairs + i;
            double a = widened(from[i * apart]), b = widened(from[i * apart + other]), c = cos[at], s = sin[at];
            double expected[2] = {a * c - b * s, b * c + a * s}, size_of_terms = (std::fabs(a) + std::fabs(b)) * 4;
            for (int part = 0; part < 2; part++) {
                double error = std::fabs(widened(found[i * apart + part * other]) - expected[part]);
                if (!(error <= 4 * 0x1p-24 * size_of_terms + unit_of<T>() * std::fabs(expected[part]))) return false;
            }
        }
        if (memcmp(found + 2 * pairs, from + 2 * pairs, (size - 2 * pairs) * sizeof(T))) return false;
    }
    return true;
}
