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

static inline Floats within(Floats x, Floats low, Floats high) {
    x = x < low ? low : x;
    return x > high ? high : x;
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

static inline Floats below(Floats x) {
    Floats nearest = whole(x);
    return nearest > x ? nearest - all(1.0f) : nearest;
}

static inline Floats above(Floats x) { return -below(-x); }

constexpr int TOGETHER = LANES * GROUP;

// As many groups as a vector has lanes, each on the grid that suits it best: that of the least error, squared
// and summed; the first of those as good. A group is a lane: no sum is over lanes, and no group waits for another.
struct Grids {
    Floats step = all(1.0f), zero = {};

    // numbers[i]: the i-th of each group.
    void choose(const Floats (&numbers)[GROUP]) {
        Floats low = {}, high = {}, least = all(__builtin_inff());
        for (const Floats& x : numbers) {
            low = x < low ? x : low;
            high = x > high ? x : high;
        }
        Floats exact = (high - low) / all(15.0f);
        for (Floats tried : {below(exact), above(exact), above(exact) + all(1.0f)}) {
            tried = within(tried, all(1.0f), all(16.0f));
            Floats places[GROUP], exact_zero = -low / tried;
            on_steps(numbers, tried, places);
            for (Floats start : {below(exact_zero), above(exact_zero)}) {
                start = start > all(15.0f) ? all(15.0f) : start;
                Floats squares[GROUP];
                for (int i = 0; i < GROUP; i++) {
                    Floats error = within(places[i], -start, all(15.0f) - start) * tried - numbers[i];
                    squares[i] = error * error;
                }
                for (int half = GROUP / 2; half; half /= 2)
                    for (int i = 0; i < half; i++) squares[i] += squares[i + half];
                auto is_better = squares[0] < least;
                least = is_better ? squares[0] : least;
                step = is_better ? tried : step;
                zero = is_better ? start : zero;
            }
        }
    }

    // Two codes in a byte, for the first `count` groups.
    void pack(const Floats (&numbers)[GROUP], int64_t count, uint8_t* codes, uint8_t* grids) const {
        Floats places[GROUP];
        on_steps(numbers, step, places);
        Ints pairs[GROUP_BYTES], both = __builtin_convertvector((step - all(1.0f)) * all(16.0f) + zero, Ints);
        for (int i = 0; i < GROUP; i += 2) {
            Ints pair[2];
            for (int j = 0; j < 2; j++)
                pair[j] = __builtin_convertvector(within(places[i + j], -zero, all(15.0f) - zero) + zero, Ints);
            pairs[i / 2] = pair[0] | pair[1] << 4;
        }
        for (int64_t group = 0; group < count; group++) {
            grids[group] = both[group];
            for (int i = 0; i < GROUP_BYTES; i++) codes[group * GROUP_BYTES + i] = pairs[i][group];
        }
    }

   private:
    // How many steps from 0 the numbers are.
    static void on_steps(const Floats (&numbers)[GROUP], Floats step, Floats (&places)[GROUP]) {
        Floats end = below(all(127.0f) / step), inverse = all(1.0f) / step;
        for (int i = 0; i < GROUP; i++) places[i] = within(whole(numbers[i] * inverse), -end, end);
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
        for (int64_t first = 0; first < groups; first += LANES) {
            int64_t left = is_finite ? inputs - first * GROUP : 0, count = groups - first < LANES ? groups - first : LANES;
            T stored[TOGETHER] = {};
            memcpy(stored, w + row * inputs + first * GROUP, (left < TOGETHER ? left : TOGETHER) * sizeof(T));
            float some[TOGETHER], turned[TOGETHER];
            for (int i = 0; i < TOGETHER; i++) some[i] = widened(stored[i]) / scale;
            for (int i = 0; i < GROUP; i++)
                for (int lane = 0; lane < LANES; lane++) turned[i * LANES + lane] = some[lane * GROUP + i];
            Floats numbers[GROUP];
            for (int i = 0; i < GROUP; i++) numbers[i] = load<Floats>(turned + i * LANES);
            Grids best;
            best.choose(numbers);
            best.pack(numbers, count, codes + (row * groups + first) * GROUP_BYTES, grids + row * groups + first);
        }
    }
    return 0;
}
