// The same in tiles (AMX), where the cache is of bfloat16: sixteen queries with a block of it.
#pragma once

#include "attention_strips.h"

#if defined(__AMX_BF16__)
// Tile 0 is of products; 1 and 2 of queries and keys, 32 numbers of each, 3 and 4 of half as many, or of the weights
// and values of a block; then there are products in 5, 6 and 7, too.
template <>
struct TilesOf<bfloat16> : Tiles {
    TilesOf() : Tiles({16, 16, 16, 16, 8, 16, 16, 16}, {64, 64, 64, 32, 64, 64, 64, 64}) {}
};

// As they lie in the cache, the keys of a block are what a tile of queries is multiplied with. The queries are followed
// by zeros to whole tiles.
static void score_all(const Step& step, const Item<bfloat16>& item, const bfloat16* queries, int64_t query, int64_t count,
                      int64_t start, float* scores) {
    static_assert(BLOCK_SIZE == SIDE, "a block is a tile");
    Seen<SCORED> seen(item, query, count, start);
    const int32_t* table = item.table + start / BLOCK_SIZE;
    int64_t block = seen.from[0] / BLOCK_SIZE, end = (seen.to[count - 1] + BLOCK_SIZE - 1) / BLOCK_SIZE, size = step.size;
    const bfloat16* from = queries + query * size;
    MEMORY_IS_READ;
    for (; block < end; block++) {
        const bfloat16* keys = item.keys + table[block] * BLOCK_SIZE * size;
        const bfloat16* values = item.values + table[block] * BLOCK_SIZE * size;
        _tile_zero(0);
        int64_t i = 0;
        for (; i + 32 <= size; i += 32) {
            _tile_loadd(1, from + i, size * sizeof *from);
            _tile_loadd(2, keys + i * BLOCK_SIZE, STEP);
            _tile_dpbf16ps(0, 1, 2);
            for (int line = 0; line < 16; line++) __builtin_prefetch(values + (i + 2 * line) * BLOCK_SIZE);  // needed next
        }
        if (i < size) {
            _tile_loadd(3, from + i, size * sizeof *from);
            _tile_loadd(4, keys + i * BLOCK_SIZE, STEP);
            _tile_dpbf16ps(0, 3, 4);
        }
        _tile_stored(0, scores + block * BLOCK_SIZE, SPAN * sizeof *scores);
    }
    MEMORY_IS_READ;
}

// Makes the weights of a block what they are multiplied as: each the sum of two of bfloat16, first all the upper ones.
static inline void split(float* weights) {
    __m512 exact = load<__m512>(weights);
    __m256bh upper = _mm512_cvtneps_pbh(exact);
    __m512 rest = _mm512_sub_ps(exact, _mm512_cvtpbh_ps(upper));
    store(weights, upper);
    store(weights + BLOCK_SIZE / 2, _mm512_cvtneps_pbh(rest));
}

// Adds the values of some blocks, weighted, to the sums of a tile of queries. weights: [SCORED, SPAN], split.
static void weigh_blocks(const bfloat16* values, const int32_t* table, int64_t size, int64_t first, int64_t last,
                         const float* weights, float* out) {
    int64_t row = size * sizeof *out;  // of a query's sums, and of the values of two keys
    for (int64_t i = 0; i < size; i += 4 * SIDE) {
        int64_t columns = least((size - i) / SIDE, 4);
        MEMORY_IS_READ;
        _tile_loadd(0, out + i, row);
        if (columns > 1) _tile_loadd(5, out + i + SIDE, row);
        if (columns > 2) _tile_loadd(6, out + i + 2 * SIDE, row);
        if (columns > 3) _tile_loadd(7, out + i + 3 * SIDE, row);
        for (int64_t block = first; block < last; block++) {
            const bfloat16* from = values + (table[block] * BLOCK_SIZE * size + 2 * i);
            for (int part = 0; part < 2; part++) {
                _tile_loadd(3, weights + block * BLOCK_SIZE + part * BLOCK_SIZE / 2, SPAN * sizeof *weights);
                _tile_loadd(4, from, row);
                _tile_dpbf16ps(0, 3, 4);
                if (columns > 1) _tile_loadd(4, from + 2 * SIDE, row);
                if (columns > 1) _tile_dpbf16ps(5, 3, 4);
                if (columns > 2) _tile_loadd(4, from + 4 * SIDE, row);
                if (columns > 2) _tile_dpbf16ps(6, 3, 4);
                if (columns > 3) _tile_loadd(4, from + 6 * SIDE, row);
                if (columns > 3) _tile_dpbf16ps(7, 3, 4);
            }
        }
        _tile_stored(0, out + i, row);
        if (columns > 1) _tile_stored(5, out + i + SIDE, row);
        if (columns > 2) _tile_stored(6, out + i + 2 * SIDE, row);
        if (columns > 3) _tile_stored(7, out + i + 3 * SIDE, row);
        MEMORY_IS_READ;
    }
}

// What a query sees of a block in part it adds by itself; the blocks that it sees whole are added in tiles. Its neighbours
// may see one that it does not: its weights there are 0, and its sums are put back, since 0 does not undo NaN.
static void weigh_all(const Step& step, const Item<bfloat16>& item, const State<bfloat16>& state, int64_t query,
                      int64_t count, int64_t start, float* scores) {
    Seen<SCORED> seen(item, query, count, start);
    const int32_t* table = item.table + start / BLOCK_SIZE;
    int64_t size = step.size, begin = (seen.from[0] + BLOCK_SIZE - 1) / BLOCK_SIZE, end = seen.to[count - 1] / BLOCK_SIZE;
    float* out = state.sums_of_values + query * size;
    int64_t first[SCORED], last[SCORED];  // of the blocks that it sees whole; both ascend
    for (int64_t n = 0; n < count; n++) {
        int64_t from = seen.from[n], to = seen.to[n];
        float* weights = scores + n * SPAN;
        soften_query(step, item, state, query + n, start, from, to, weights);
        first[n] = (from + BLOCK_SIZE - 1) / BLOCK_SIZE;
        last[n] = most(first[n], to / BLOCK_SIZE);
        weigh<bfloat16, 1>(item.values, table, size, from, least(first[n] * BLOCK_SIZE, to), weights, out + n * size);
        weigh<bfloat16, 1>(item.values, table, size, last[n] * BLOCK_SIZE, to, weights, out + n * size);
        for (int64_t block = begin; block < end; block++) {
            float* some = weights + block * BLOCK_SIZE;
            if (block < first[n] || block >= last[n]) memset(some, 0, BLOCK_SIZE * sizeof *some);
            split(some);
        }
    }
    for (int64_t block = begin, next; block < end; block = next) {
        next = first[count - 1] <= block && block < last[0] ? last[0] : block + 1;  // what all see, or what some do
        auto misses = [&](int64_t n) { return block < first[n] || block >= last[n]; };
        for (int64_t n = 0; n < count; n++)
            if (misses(n)) memcpy(state.kept + n * size, out + n * size, size * sizeof *out);
        weigh_blocks(item.values, table, size, block, next, scores, out);
        for (int64_t n = 0; n < count; n++)
            if (misses(n)) memcpy(out + n * size, state.kept + n * size, size * sizeof *out);
    }
}
#endif
