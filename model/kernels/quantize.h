// Dense weights in int8 and in 4 bits, as they are loaded: the bits of model/quantization/int8.py and int4.py.
#pragma once

#include "int4.h"

// By which a row lies between -127 and 127; 1 where that is 0; NaN or infinite if a number is.
template <class T>
static float step_of_row(const T* row, int64_t size) {
    int32_t largest = largest_bits(row, size);
    float step = load<float>(&largest) / 127.0f;
    return step == 0.0f ? 1.0f : step;
}

// The nearest whole numbers, the even one of two, of numbers within 2^22.
static inline Floats whole(Floats x) {
    Floats large = all(12582912.0f);
    return x + large - large;
}

static inline Floats within(Floats x, float low, float high) {
    x = x < all(low) ? all(low) : x;
    return x > all(high) ? all(high) : x;
}

// codes: [rows, inputs], scales: [rows].
template <class T>
static int quantize_int8(int64_t rows, const T* w, int8_t* codes, float* scales, int64_t inputs) {
#pragma omp parallel for if (rows * inputs > LEAST_WORK)
    for (int64_t row = 0; row < rows; row++) {
        float scale = scales[row] = step_of_row(w + row * inputs, inputs);
        if (!(scale < __builtin_inff())) scale = __builtin_inff();  // all is 0 then, or NaN: no integer of either
        for (int64_t i = 0; i < inputs; i++) {
            float shifted = widened(w[row * inputs + i]) / scale + 12582912.0f;
            int32_t whole = load<int32_t>(&shifted) - 0x4b400000;
            codes[row * inputs + i] = whole > 127 ? 127 : whole < -127 ? -127 : whole;  // a scale of few bits may be too small
        }
    }
    return 0;
}

constexpr int VECTORS = GROUP / LANES;

// A group on the grids that suit it best: the one of the least error, squared and summed; the first of those as good.
struct Grid {
    float step = 1, zero = 0;

    void choose(const Floats (&group)[VECTORS]) {
        Floats least = {}, most = {};
        for (const Floats& x : group) {
            least = x < least ? x : least;
            most = x > most ? x : most;
        }
        float low = -largest(-least), exact = (largest(most) - low) / 15.0f, up = __builtin_ceilf(exact);
        float steps[3] = {__builtin_floorf(exact), up, up + 1.0f}, zeros[3][2], errors[3][2];
        for (int i = 0; i < 3; i++) {
            steps[i] = steps[i] < 1.0f ? 1.0f : steps[i] > 16.0f ? 16.0f : steps[i];
            float end = __builtin_floorf(127.0f / steps[i]), exact_zero = -low / steps[i];
            Floats places[VECTORS];
            for (int j = 0; j < VECTORS; j++) places[j] = within(whole(group[j] * all(1.0f / steps[i])), -end, end);
            for (int upper = 0; upper < 2; upper++) {
                float rounded = upper ? __builtin_ceilf(exact_zero) : __builtin_floorf(exact_zero);
                zeros[i][upper] = rounded > 15.0f ? 15.0f : rounded;
                Floats squares[VECTORS];
                for (int j = 0; j < VECTORS; j++) {
                    Floats error = within(places[j], -zeros[i][upper], 15.0f - zeros[i][upper]) * all(steps[i]) - group[j];
                    squares[j] = error * error;
                }
                for (int half = VECTORS / 2; half; half /= 2)  // halves onto each other, as `sum` goes on with it
                    for (int j = 0; j < half; j++) squares[j] += squares[j + half];
                errors[i][upper] = sum(squares[0]);
            }
        }
        int best = 0;  // chosen at the end: branches that cannot be foreseen are slow
        for (int i = 1; i < 6; i++) best = errors[i / 2][i % 2] < errors[best / 2][best % 2] ? i : best;
        step = steps[best / 2];
        zero = zeros[best / 2][best % 2];
    }

    // Two codes in a byte.
    void pack(const Floats (&group)[VECTORS], uint8_t* to) const {
        float end = __builtin_floorf(127.0f / step);
        int32_t codes[GROUP];
        for (int i = 0; i < VECTORS; i++) {
            Floats places = within(whole(group[i] * all(1.0f / step)), -end, end);
            store(codes + i * LANES, __builtin_convertvector(within(places, -zero, 15.0f - zero) + all(zero), Ints));
        }
        for (int i = 0; i < GROUP / 2; i++) to[i] = codes[2 * i] | codes[2 * i + 1] << 4;
    }
};

// codes: [rows, groups * GROUP_BYTES], grids: [rows, groups], scales: [rows].
template <class T>
static int quantize_int4(int64_t rows, const T* w, uint8_t* codes, uint8_t* grids, float* scales, int64_t inputs) {
    int64_t groups = rounded_up(inputs, GROUP) / GROUP;
#pragma omp parallel for if (rows * inputs > LEAST_WORK)
    for (int64_t row = 0; row < rows; row++) {
        float scale = scales[row] = step_of_row(w + row * inputs, inputs);
        bool is_finite = scale < __builtin_inff();
        for (int64_t group = 0; group < groups; group++) {
            int64_t left = is_finite ? inputs - group * GROUP : 0;
            T stored[GROUP] = {};
            memcpy(stored, w + row * inputs + group * GROUP, (left < GROUP ? left : GROUP) * sizeof(T));
            float some[GROUP];
            for (int i = 0; i < GROUP; i++) some[i] = widened(stored[i]) / scale;
            Floats numbers[VECTORS];
            for (int i = 0; i < VECTORS; i++) numbers[i] = load<Floats>(some + i * LANES);
            Grid grid;
            grid.choose(numbers);
            grid.pack(numbers, codes + (row * groups + group) * GROUP_BYTES);
            grids[row * groups + group] = 16 * ((int)grid.step - 1) + (int)grid.zero;
        }
    }
    return 0;
}
