// One path: every kernel, compiled with one instruction set's flags and `PATH` as its name (see build.py).
#include "linear.h"

#define JOINED(path, name) path##_##name
#define NAMED(path, name) JOINED(path, name)
#define KERNEL(name) extern "C" __attribute__((visibility("default"))) int NAMED(PATH, name)

KERNEL(linear)(const void* x, const void* w, const void* bias, void* out, int32_t dtype, int64_t rows,
               int64_t inputs, int64_t outputs) {
    return linear(x, w, bias, out, (Dtype)dtype, rows, inputs, outputs);
}
