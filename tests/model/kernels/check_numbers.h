// What the checks draw and how they read it: numbers as the kernels hold them, the same ones each day.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(from, size)
#define ASAN_UNPOISON_MEMORY_REGION(from, size)
#endif

typedef uint16_t bfloat16;

// Memory of exactly the size asked for: at its end begins a page that nobody may touch, not even the instructions that no
// sanitizer knows, as those of tiles. What lies before it only the sanitizer forbids.
template <class T>
struct Exactly {
    using value_type = T;

    static size_t page() { return sysconf(_SC_PAGESIZE); }
    static size_t pages_of(size_t count) { return (count * sizeof(T) + page() - 1) / page() * page(); }

    T* allocate(size_t count) {
        size_t whole = pages_of(count), before = whole - count * sizeof(T);
        void* memory = mmap(nullptr, whole + page(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED || mprotect((char*)memory + whole, page(), PROT_NONE)) abort();
        ASAN_POISON_MEMORY_REGION(memory, before);
        return (T*)((char*)memory + before);
    }

    void deallocate(T* from, size_t count) {
        size_t whole = pages_of(count);
        char* memory = (char*)from + count * sizeof(T) - whole;
        ASAN_UNPOISON_MEMORY_REGION(memory, whole);
        munmap(memory, whole + page());
    }

    bool operator==(const Exactly&) const { return true; }
    bool operator!=(const Exactly&) const { return false; }
};

template <class T>
using vector = std::vector<T, Exactly<T>>;

template <class T>
static bool same(const vector<T>& a, const vector<T>& b) {
    return a.size() == b.size() && !memcmp(a.data(), b.data(), a.size() * sizeof(T));
}

typedef int Kernel(int64_t, const int64_t*);

template <class Argument>
static int64_t word(Argument argument) {
    return (int64_t)argument;
}
template <>
int64_t word(float argument) {
    int32_t bits;
    memcpy(&bits, &argument, 4);
    return bits;
}

// With the arguments that the kernel's own function has, from the second on.
template <class... Arguments>
static void call(Kernel* kernel, int64_t rows, Arguments... arguments) {
    int64_t words[] = {word(arguments)...};
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
