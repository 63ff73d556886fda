// What the checks draw and how they read it: numbers as the kernels hold them, the same ones each day.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

typedef uint16_t bfloat16;
using std::vector;

typedef int Kernel(int64_t, const int64_t*);

// With the arguments that the kernel's own function has, from the second on.
template <class... Arguments>
static void call(Kernel* kernel, int64_t rows, Arguments... arguments) {
    int64_t words[] = {(int64_t)arguments...};
    kernel(rows, words);
}

static float widened(float x) { return x; }

static float widened(bfloat16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

static void narrow(float x, float& to) { to = x; }

static void narrow(float x, bfloat16& to) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    to = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

// Numbers that are no different tomorrow.
struct Random {
    uint64_t state = 1;

    uint32_t next() { return (state = state * 6364136223846793005u + 1442695040888963407u) >> 33; }

    template <class T>
    vector<T> numbers(int64_t count) {
        vector<T> all(count);
        for (T& x : all) narrow((next() % 2001 - 1000.0f) / 256, x);
        return all;
    }

    template <class T>
    vector<T> integers(int64_t count) {
        vector<T> all(count);
        for (T& x : all) x = (T)next();
        return all;
    }
};
