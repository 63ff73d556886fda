// Every kernel of every path, on ragged sizes, against plain loops: a program of its own, for emulators and sanitizers.
//
//   check [path ...]    the paths given, or those that this machine has
//
// Prints a line for each path and dtype; the exit status is 1 if one failed. It knows the kernels as path.cpp has them.
#include <omp.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "check_attention.h"
#include "check_elementwise.h"
#include "check_numbers.h"

extern "C" int verbatim_supports(const char* path);

#define DECLARE(path, T, dtype) \
    extern "C" Kernel path##_linear_##dtype, path##_linear_int8_##dtype, path##_linear_int4_##dtype, path##_linear_packed_##dtype, \
        path##_quantize_int8_##dtype, path##_quantize_int4_##dtype, path##_attend_##dtype, path##_activate_##dtype, \
        path##_add_##dtype, path##_layer_norm_##dtype, path##_rms_norm_##dtype, path##_rotate_##dtype, path##_sha256_uint8;
#define EACH_DTYPE(DO, path) DO(path, float, float32) DO(path, bfloat16, bfloat16)
#if defined(__x86_64__)
#define EACH_PATH(DO) \
    EACH_DTYPE(DO, plain) EACH_DTYPE(DO, avx2) EACH_DTYPE(DO, avx512) EACH_DTYPE(DO, avx512_bf16) EACH_DTYPE(DO, amx)
#else
#define EACH_PATH(DO) EACH_DTYPE(DO, plain)
#endif
EACH_PATH(DECLARE)

struct Kernels {
    Kernel *linear, *int8, *int4, *packed, *quantize_int8, *quantize_int4, *attend, *activate, *add, *layer_norm, *rms_norm, *rotate,
        *sha256;
};

// Within the error of the sum and of one rounding, and each row with its bits alone.
template <class T>
static bool linear_is_right(const Kernels& kernels, Random& random, int64_t rows, int64_t inputs, int64_t outputs) {
    auto x = random.numbers<T>(rows * inputs), w = random.numbers<T>(outputs * inputs), bias = random.numbers<T>(outputs);
    vector<T> out(rows * outputs), row(outputs);
    call(kernels.linear, rows, x.data(), w.data(), bias.data(), out.data(), inputs, outputs);
    double unit = sizeof(T) == 4 ? 0x1p-23 : 0x1p-8;
    for (int64_t m = 0; m < rows; m++) {
        for (int64_t n = 0; n < outputs; n++) {
            double sum = widened(bias[n]), size = std::fabs(sum);
            for (int64_t i = 0; i < inputs; i++) {
                double term = (double)widened(x[m * inputs + i]) * widened(w[n * inputs + i]);
                sum += term;
                size += std::fabs(term);
            }
            double error = std::fabs(widened(out[m * outputs + n]) - sum);
            if (!(error <= inputs * 0x1p-24 * size + unit * std::fabs(sum))) return false;
        }
        call(kernels.linear, 1, x.data() + m * inputs, w.data(), bias.data(), row.data(), inputs, outputs);
        if (memcmp(row.data(), out.data() + m * outputs, outputs * sizeof(T))) return false;
    }
    return true;
}

// A row in int8, and the step between its integers.
template <class T>
static float rounded_row(const T* row, int64_t inputs, vector<int>& to) {
    float largest = 0;
    for (int64_t i = 0; i < inputs; i++) largest = std::fmax(largest, std::fabs(widened(row[i])));
    float step = std::fmax(largest / 127.5f, 0x1p-126f);
    for (int64_t i = 0; i < inputs; i++)
        to[i] = std::fmin(std::nearbyint(widened(row[i]) / step), 127.0f);
    return step;
}

// The bits of the formula.
template <class T>
static bool int8_is_right(const Kernels& kernels, Random& random, int64_t rows, int64_t inputs, int64_t outputs) {
    auto x = random.numbers<T>(rows * inputs), bias = random.numbers<T>(outputs);
    auto w = random.integers<int8_t>(outputs * inputs);
    auto scales = random.numbers<float>(outputs);
    vector<T> out(rows * outputs), expected(rows * outputs);
    call(kernels.int8, rows, x.data(), w.data(), scales.data(), bias.data(), out.data(), inputs, outputs);
    vector<int> row(inputs);
    for (int64_t m = 0; m < rows; m++) {
        float step = rounded_row(x.data() + m * inputs, inputs, row);
        for (int64_t n = 0; n < outputs; n++) {
            int64_t sum = 0;
            for (int64_t i = 0; i < inputs; i++) sum += row[i] * w[n * inputs + i];
            T& y = expected[m * outputs + n];
            narrow((float)sum * step * scales[n], y);
            narrow(widened(y) + widened(bias[n]), y);
        }
    }
    return same(out, expected);
}

// The bits of int8's product with what the codes stand for.
template <class T>
static bool int4_is_right(const Kernels& kernels, Random& random, int64_t rows, int64_t inputs, int64_t outputs) {
    int64_t groups = (inputs + 31) / 32;
    auto x = random.numbers<T>(rows * inputs), bias = random.numbers<T>(outputs);
    auto codes = random.integers<uint8_t>(outputs * groups * 16), grids = random.integers<uint8_t>(outputs * groups);
    auto scales = random.numbers<float>(outputs);
    for (uint8_t& grid : grids) grid &= 0x7f;  // a step of 8 at most: all integers fit int8
    vector<int8_t> w(outputs * inputs);
    for (int64_t n = 0; n < outputs; n++)
        for (int64_t i = 0; i < inputs; i++) {
            int code = (codes[n * groups * 16 + i / 2] >> (4 * (i % 2))) & 15, grid = grids[n * groups + i / 32];
            w[n * inputs + i] = (grid / 16 + 1) * (code - grid % 16);
        }
    vector<T> out(rows * outputs), expected(rows * outputs);
    call(kernels.int4, rows, x.data(), codes.data(), grids.data(), scales.data(), bias.data(), out.data(), inputs, outputs);
    call(kernels.int8, rows, x.data(), w.data(), scales.data(), bias.data(), expected.data(), inputs, outputs);
    return same(out, expected);
}

// int8 within half a step of the row; int4's within a step of its group's grid, by the mean of the squares.
template <class T>
static bool rounding_is_right(const Kernels& kernels, Random& random, int64_t rows, int64_t inputs) {
    int64_t groups = (inputs + 31) / 32;
    auto w = random.numbers<T>(rows * inputs);
    vector<int8_t> integers(rows * inputs);
    vector<uint8_t> codes(rows * groups * 16), grids(rows * groups);
    vector<float> scales(rows), same_scales(rows);
    call(kernels.quantize_int8, rows, w.data(), integers.data(), scales.data(), inputs);
    call(kernels.quantize_int4, rows, w.data(), codes.data(), grids.data(), same_scales.data(), inputs);
    if (!same(scales, same_scales)) return false;
    for (int64_t row = 0; row < rows; row++)
        for (int64_t group = 0; group < groups; group++) {
            double squares = 0, low = 0, high = 0;
            int grid = grids[row * groups + group];
            for (int64_t i = group * 32; i < inputs && i < group * 32 + 32; i++) {
                double number = widened(w[row * inputs + i]) / scales[row];
                if (!(std::fabs(number - integers[row * inputs + i]) <= 0.5001)) return false;
                int code = (codes[(row * groups) * 16 + i / 2] >> (4 * (i % 2))) & 15;
                double error = number - (grid / 16 + 1) * (code - grid % 16);
                squares += error * error;
                low = std::fmin(low, number);
                high = std::fmax(high, number);
            }
            double step = (high - low) / 15 + 1;
            if (!(squares <= 32 * step * step)) return false;
        }
    return true;
}

// The bits of the dense product with the decoded weight.
template <class T>
static bool packed_is_right(const Kernels& kernels, Random& random, int64_t rows, int64_t outputs, int32_t bits,
                            int64_t groups, int64_t size, int64_t missing) {
    int64_t columns = groups * size, inputs = columns - missing;
    auto x = random.numbers<T>(rows * inputs), bias = random.numbers<T>(outputs);
    auto codes = random.integers<uint8_t>(outputs * columns * bits / 8), zeros = random.integers<uint8_t>(outputs * groups);
    auto scales = random.numbers<bfloat16>(outputs * groups);
    vector<T> weight(outputs * inputs), out(rows * outputs), expected(rows * outputs);
    for (int64_t n = 0; n < outputs; n++)
        for (int64_t i = 0; i < inputs; i++) {
            int64_t at = n * columns + i, group = n * groups + i / size;
            float code = bits == 8 ? (int8_t)codes[at] : (codes[at / 2] >> (4 * (at % 2))) & 15;
            float zero = bits == 8 ? (int8_t)zeros[group] : zeros[group];
            narrow((code - zero) * widened(scales[group]), weight[n * inputs + i]);
        }
    call(kernels.packed, rows, x.data(), codes.data(), scales.data(), zeros.data(), nullptr, bias.data(), out.data(), bits,
         1, groups, size, inputs, outputs);
    call(kernels.linear, rows, x.data(), weight.data(), bias.data(), expected.data(), inputs, outputs);
    return same(out, expected);
}

// 64 zeros have the digest that anybody finds for them; and each message has its own alone, whatever lies in other lanes.
static bool hashes_are_right(Kernel* sha256, Random& random, int64_t rows, int64_t size) {
    constexpr uint8_t OF_ZEROS[] = {0xf5, 0xa5, 0xfd, 0x42, 0xd1, 0x6a, 0x20, 0x30, 0x27, 0x98, 0xef, 0x6e, 0xd3, 0x09, 0x97, 0x9b,
                                    0x43, 0x00, 0x3d, 0x23, 0x20, 0xd9, 0xf0, 0xe8, 0xea, 0x98, 0x31, 0xa9, 0x27, 0x59, 0xfb, 0x4b};
    vector<uint8_t> zeros(64 * rows), digests(32 * rows), alone(32);
    call(sha256, rows, zeros.data(), digests.data(), 64);
    for (int64_t row = 0; row < rows; row++)
        if (memcmp(&digests[32 * row], OF_ZEROS, 32)) return false;
    auto messages = random.integers<uint8_t>(rows * size);
    call(sha256, rows, messages.data(), digests.data(), size);
    for (int64_t row = 0; row < rows; row++) {
        call(sha256, 1, &messages[row * size], alone.data(), size);
        if (memcmp(&digests[32 * row], alone.data(), 32)) return false;
    }
    return true;
}

// Says of each kernel that is wrong where it is.
struct Report {
    const char *path, *dtype;
    bool all = true;

    void operator()(const char* kernel, bool right, int64_t rows, int64_t a, int64_t b) {
        if (!right) printf("FAIL %s %s %s: %ld %ld %ld\n", path, kernel, dtype, (long)rows, (long)a, (long)b);
        all &= right;
    }
};

template <class T>
static void check_products(const Kernels& kernels, Random& random, Report& report) {
    for (int64_t rows : {1, 2, 3, 4, 7, 16, 17, 33})
        for (int64_t inputs : {1, 31, 64, 100, 257})
            for (int64_t outputs : {1, 15, 33, 70}) {
                report("linear", linear_is_right<T>(kernels, random, rows, inputs, outputs), rows, inputs, outputs);
                report("linear_int8", int8_is_right<T>(kernels, random, rows, inputs, outputs), rows, inputs, outputs);
            }
    for (int64_t rows : {1, 2, 3, 4, 9, 33})
        for (int64_t inputs : {1, 33, 100, 255, 256, 300, 511, 512, 520, 800, 1300})
            for (int64_t outputs : {1, 2, 19})
                report("linear_int4", int4_is_right<T>(kernels, random, rows, inputs, outputs), rows, inputs, outputs);
    for (int64_t inputs : {1, 31, 32, 100, 520})
        report("quantize", rounding_is_right<T>(kernels, random, 7, inputs), 7, inputs, 0);
    for (int64_t rows : {1, 4, 7, 8, 16, 33})
        for (int64_t size : {64, 192, 1024})
            report("sha256", hashes_are_right(kernels.sha256, random, rows, size), rows, size, 0);
    for (int64_t rows : {1, 5, 33})
        for (int32_t bits : {4, 8})
            for (int64_t size : {2, 32, 70})
                report("linear_packed", packed_is_right<T>(kernels, random, rows, 37, bits, 3, size, size / 2), rows, bits, size);
}

// The edges of what is computed together: one or two tiles of 16 rows, and what is called ahead of two more; a tile's 64
// bytes of inputs; outputs by 32, and by blocks of which, on one thread, 640 are the first to be called ahead for.
template <class T>
static void check_edges(const Kernels& kernels, Random& random, Report& report) {
    int before = omp_get_max_threads();
    for (int threads : {1, 3}) {
        omp_set_num_threads(threads);
        for (int64_t rows : {32, 48, 49, 97})
            for (int64_t inputs : {32, 64, 65})
                for (int64_t outputs : {16, 48, 639, 640, 673}) {
                    report("linear", linear_is_right<T>(kernels, random, rows, inputs, outputs), rows, inputs, outputs);
                    report("linear_int8", int8_is_right<T>(kernels, random, rows, inputs, outputs), rows, inputs, outputs);
                    report("linear_int4", int4_is_right<T>(kernels, random, rows, inputs, outputs), rows, inputs, outputs);
                }
        report("linear_packed", packed_is_right<T>(kernels, random, 97, 673, 4, 2, 32, 0), 97, 4, 32);
    }
    omp_set_num_threads(before);
}

template <class T>
static void check_attention(const Kernels& kernels, Random& random, Report& report) {
    auto check = [&](int64_t group, int64_t head_dim, int64_t window, const Kind& kind) {
        report("attend", attention_is_right<T>(kernels.attend, random, group, head_dim, window, kind), group, head_dim, window);
    };
    for (int64_t group : {1, 3, 8})
        for (int64_t head_dim : {7, 24, 64, 144})
            for (int64_t window : {1, 40, 1000}) check(group, head_dim, window, {});
    for (int64_t window : {1, 40, 1000}) {
        check(3, 24, window, {20, false, false, false});
        check(3, 24, window, {0, true, false, false});
        check(3, 24, window, {0, true, true, false});
        check(3, 24, window, {0, false, false, true});
        check(1, 7, window, {20, true, true, true});
    }
}

// Rows of fewer numbers than a vector, of whole ones, and of some more; the last of so many rows that threads share them.
template <class T>
static void check_elementwise(const Kernels& kernels, Random& random, Report& report) {
    constexpr int64_t SHAPES[][2] = {{1, 1}, {3, 7}, {2, 8}, {3, 15}, {3, 31}, {1, 32}, {3, 33}, {2, 64}, {3, 257}, {250, 67}};
    for (auto& [rows, size] : SHAPES)
        for (bool has : {false, true}) {
            report("activate", activation_is_right<T>(kernels.activate, random, rows, size, has), rows, size, has);
            report("add", sum_is_right<T>(kernels.add, random, rows, size, has ? 0.3f : 1.0f), rows, size, has);
            report("norm", norms_are_right<T>(kernels.layer_norm, kernels.rms_norm, random, rows, size, has), rows, size, has);
            for (int64_t pairs : {(int64_t)0, size / 3, size / 2})
                report("rotate", rotation_is_right<T>(kernels.rotate, random, rows, size, pairs, has), rows, size, pairs);
        }
}

template <class T>
static bool passes(const char* path, const char* dtype, const Kernels& kernels) {
    Random random;
    Report report = {path, dtype};
    check_elementwise<T>(kernels, random, report);
    check_products<T>(kernels, random, report);
    check_edges<T>(kernels, random, report);
    check_attention<T>(kernels, random, report);
    printf("%s %s %s\n", report.all ? "PASS" : "FAIL", path, dtype);
    fflush(stdout);
    return report.all;
}

static bool is_wanted(const char* path, int count, char** names) {
    if (count == 1) return verbatim_supports(path);
    for (int i = 1; i < count; i++)
        if (!strcmp(names[i], path)) return true;
    return false;
}

int main(int count, char** names) {
    bool all = true;
#define CHECK(path, T, dtype)                                                                                      \
    if (is_wanted(#path, count, names)) {                                                                          \
        verbatim_supports(#path); /* which asks the operating system for what the path needs */                    \
        Kernels kernels = {path##_linear_##dtype, path##_linear_int8_##dtype, path##_linear_int4_##dtype,          \
                           path##_linear_packed_##dtype, path##_quantize_int8_##dtype, path##_quantize_int4_##dtype, \
                           path##_attend_##dtype, path##_activate_##dtype, path##_add_##dtype, path##_layer_norm_##dtype, \
                           path##_rms_norm_##dtype, path##_rotate_##dtype, path##_sha256_uint8};                   \
        all &= passes<T>(#path, #dtype, kernels);                                                                  \
    }
    EACH_PATH(CHECK)
    return !all;
}
