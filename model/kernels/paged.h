// A step's rows, and where their keys and values lie in the paged cache.
//
// Within a block, keys and values lie so that a vector's lanes are 16 keys of one number, and the numbers of one
// value: then no sum is across lanes. In bfloat16, a 32-bit word holds two that follow each other in a sum.
//
//   keys    [size / PACK][BLOCK_SIZE keys][PACK]
//   values  [BLOCK_SIZE / PACK][size][PACK]
#pragma once

#include <cstdlib>

#include "vector.h"

constexpr int BLOCK_SIZE = 16;  // as in kv_cache.py

template <class T>
constexpr int PACK = sizeof(float) / sizeof(T);

static constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static constexpr int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// The rows of a step, and what all layers share. As in attention.py.
struct Step {
    int64_t num_sequences, num_blocks, num_heads, num_kv_heads, head_dim, size;  // size: of a head in the cache
    const int64_t* starts;        // [num_sequences] the position of the first row
    const int64_t* first_rows;    // [num_sequences + 1] ends with the number of all rows
    const int64_t* first_blocks;  // [num_sequences + 1] where in `tables` its block table begins
    const int32_t* tables;
    void *keys, *values;  // [layers, num_kv_heads, num_blocks, a block]
    const float* slopes;  // [num_heads] or null
    float scale, softcap;  // softcap: 0 for none
    int32_t is_alibi_rounded;
};

// Consecutive rows of one sequence, of one head of the cache: what a thread does at a time.
struct Rows {
    int64_t sequence, first, last;  // rows first ... last - 1 of the step
};

// Of all sequences, `height` at a time. Null if there is no memory; to be freed.
static Rows* cut(const Step& step, int64_t height, int64_t& count) {
    count = 0;
    for (int64_t s = 0; s < step.num_sequences; s++)
        count += (step.first_rows[s + 1] - step.first_rows[s] + height - 1) / height;
    auto* tiles = (Rows*)malloc((count + 1) * sizeof(Rows));
    if (!tiles) return nullptr;
    Rows* next = tiles;
    for (int64_t s = 0; s < step.num_sequences; s++)
        for (int64_t row = step.first_rows[s]; row < step.first_rows[s + 1]; row += height)
            *next++ = {s, row, least(row + height, step.first_rows[s + 1])};
    return tiles;
}

static inline int64_t position_of(const Step& step, const Rows& rows) {
    return step.starts[rows.sequence] + rows.first - step.first_rows[rows.sequence];
}

// Puts keys and values of one head, each [rows, num_kv_heads, head_dim], into the cache, filled up with zeros.
template <class T>
static void write_rows(const Step& step, const Rows& rows, int64_t head, const T* k, const T* v, T* keys, T* values) {
    int64_t size = step.size, position = position_of(step, rows);
    const int32_t* table = step.tables + step.first_blocks[rows.sequence];
    for (int64_t row = rows.first; row < rows.last; row++, position++) {
        int64_t place = position % BLOCK_SIZE, block = table[position / BLOCK_SIZE] * BLOCK_SIZE * size;
        int64_t from = (row * step.num_kv_heads + head) * step.head_dim;
        T* key = keys + block + place * PACK<T>;
        T* value = values + block + place / PACK<T> * PACK<T> * size + place % PACK<T>;
        for (int64_t i = 0; i < size; i++) {
            bool is_padding = i >= step.head_dim;
            key[i / PACK<T> * PACK<T> * BLOCK_SIZE + i % PACK<T>] = is_padding ? T{} : k[from + i];
            value[i * PACK<T>] = is_padding ? T{} : v[from + i];
        }
    }
}
