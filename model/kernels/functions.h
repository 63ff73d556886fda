// Functions of vectors, each lane by itself: what a number becomes does not depend on its place.
#pragma once

#include "vector.h"

// The highest power's factor first (Horner).
template <int N>
static inline Floats polynomial(Floats x, const float (&factors)[N]) {
    Floats y = all(factors[0]);
    for (int i = 1; i < N; i++) y = multiply_add(y, x, all(factors[i]));
    return y;
}

// e^x, to about 2 units in the last place: 2^n e^r with n whole and |r| <= ln(2) / 2, e^r by its series.
// NaN stays NaN; too large a result is infinity, one below 3e-38 is 0: smaller ones take a processor 150 cycles each.
static inline Floats exponential(Floats x) {
    // Added to so large a number, x log2(e) loses what comes after its point, and its lowest bits are n.
    Floats shifted = x * all(1.44269504f) + all(12582912.0f);
    Floats n = shifted - all(12582912.0f);
    Floats r = multiply_add(n, all(-0.693359375f), x);  // ln(2) in two parts, the first of few bits
    r = multiply_add(n, all(2.12194440e-4f), r);
    constexpr float SERIES[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    Floats e = (Floats)((Words)polynomial(r, SERIES) + ((Words)shifted << 23));  // times 2^n: n more in its exponent
    e = x < all(-86.5f) ? Floats{} : e;
    return x < all(88.722839f) ? e : x * all(__builtin_inff());
}

// tanh: near 0 by its series, as the other form loses there what it subtracts.
static inline Floats hyperbolic_tangent(Floats x) {
    constexpr float SERIES[] = {21844.0f / 6081075, -1382.0f / 155925, 62.0f / 2835, -17.0f / 315,
                                2.0f / 15,          -1.0f / 3,         1.0f};
    Floats near = x * polynomial(x * x, SERIES);
    Floats far = all(1.0f) - all(2.0f) / (exponential(x + x) + all(1.0f));
    return (x < all(0.4f)) & (x > all(-0.4f)) ? near : far;
}

// The complementary error function of z >= 0, to 4e-7 of its value: t exp(p(t) - z^2), t = 2 / (2 + z). The
// form is that of Press et al. (Numerical Recipes, 6.2); p was fitted here, at Chebyshev's points.
static inline Floats complementary_error(Floats z) {
    constexpr float P[] = {0.152171284f,   -0.720157564f, 1.24898505f,  -0.81853658f, 0.0203504898f,
                           -0.0518615171f, 0.052532699f,  0.382924557f, 0.999060392f, -1.26546872f};
    Floats t = all(2.0f) / (all(2.0f) + z);
    return t * exponential(polynomial(t, P) - z * z);
}

// Those of model/feed_forward.py, numbered as in library.py.
enum Activation : int32_t { RELU = 0, GELU = 1, GELU_TANH = 2, SILU = 3, QUICK_GELU = 4 };

template <Activation KIND>
static inline Floats activated(Floats x) {
    if (KIND == RELU) return x < Floats{} ? Floats{} : x;  // NaN stays
    if (KIND == GELU) {
        Floats size = x < Floats{} ? -x : x;
        Floats beyond = all(0.5f) * complementary_error(size * all(0.707106781f));  // of the normal distribution
        return x * (x < Floats{} ? beyond : all(1.0f) - beyond);
    }
    // The others are x sigmoid(steep), as (1 + tanh(u)) / 2 is sigmoid(2 u).
    Floats steep = KIND == SILU         ? x
                   : KIND == QUICK_GELU ? all(1.702f) * x
                                        : all(1.595769122f) * (x + all(0.044715f) * (x * x * x));
    return x / (all(1.0f) + exponential(-steep));
}
