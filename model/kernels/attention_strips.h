// What some queries of a sequence make of a span of its keys and values, in registers: scores, softmax's weights, sums.
#pragma once

#include "amx.h"
#include "functions.h"
#include "paged.h"

constexpr int SPAN = 512;  // positions; a multiple of BLOCK_SIZE

constexpr int KEY_VECTORS = BLOCK_SIZE / LANES;
constexpr int REGISTERS = LANES == 16 ? 16 : 8;  // that hold sums: about half of those there are
constexpr int LARGEST_STRIP = LANES == 16 ? 8 : REGISTERS / KEY_VECTORS;  // queries computed together
#if defined(__AMX_BF16__)
constexpr int SCORED = SIDE;  // queries whose scores are kept: those of a tile
#else
constexpr int SCORED = LARGEST_STRIP;
#endif

// Consecutive rows of one sequence with the heads that share one head of the cache.
template <class T>
struct Item {
    const T *keys, *values;  // of the head: [num_blocks, a block]
    const int32_t* table;
    int64_t position, num_queries;  // of the first row; queries are ordered by row, then by head
    int64_t group, first_head, window;
};

// What queries are multiplied as: with tiles, as they come.
template <class T>
struct QueryOf {
    using Type = float;
};
#if defined(__AMX_BF16__)
template <>
struct QueryOf<bfloat16> {
    using Type = bfloat16;
};
#endif

// A query's numbers, as it is multiplied.
template <class T>
static inline void copied(const T* from, int64_t count, T* to) {
    memcpy(to, from, count * sizeof *to);
}

static inline void copied(const bfloat16* from, int64_t count, float* to) {
    for (int64_t i = 0; i < count; i++) to[i] = widened(from[i]);
}

// What an item's queries have come to: [num_queries] of each.
template <class T>
struct State {
    typename QueryOf<T>::Type* queries;  // [size], followed by zeros to whole tiles
    float* sums_of_values;               // [size], with room for whole tiles
    float* sums;                         // [BLOCK_SIZE] of weights, by position modulo BLOCK_SIZE
    float* largest;
    float* scores;  // [SCORED, SPAN] of those computed together
    float* kept;    // [SCORED, size] of their sums, while others are added to
};

static inline void load_packed(const float* from, Floats (&to)[1]) { to[0] = load<Floats>(from); }
static inline void load_packed(const bfloat16* from, Floats (&to)[2]) { load_pair(from, to[0], to[1]); }

// The dot products of Q queries with the keys of BLOCKS blocks, whose values are called into the cache meanwhile.
template <class T, int Q, int BLOCKS>
static inline void score(const float* queries, int64_t size, const T* keys, const T* values, const int32_t* table,
                         float* scores) {
    Floats sums[Q][BLOCKS][KEY_VECTORS] = {};
    int64_t blocks[BLOCKS];
    for (int b = 0; b < BLOCKS; b++) blocks[b] = table[b] * BLOCK_SIZE * size;
    for (int64_t i = 0; i < size; i += PACK<T>)
        for (int b = 0; b < BLOCKS; b++) {
            __builtin_prefetch(values + blocks[b] + i * BLOCK_SIZE);  // a line: they are needed next
            for (int v = 0; v < KEY_VECTORS; v++) {
                Floats some[PACK<T>];
                load_packed(keys + blocks[b] + i * BLOCK_SIZE + v * LANES * PACK<T>, some);
                for (int p = 0; p < PACK<T>; p++)
                    for (int n = 0; n < Q; n++)
                        sums[n][b][v] = multiply_add(all(queries[n * size + i + p]), some[p], sums[n][b][v]);
            }
        }
    for (int n = 0; n < Q; n++)
        for (int b = 0; b < BLOCKS; b++)
            for (int v = 0; v < KEY_VECTORS; v++)
                store(scores + n * SPAN + b * BLOCK_SIZE + v * LANES, sums[n][b][v]);
}

// Scaled; capped, and with ALiBi's bias, where a decoder has these. See model/attention.py.
static inline Floats adjusted(const Step& step, Floats products, float slope, Floats positions) {
    Floats scores = products * all(step.scale);
    if (step.softcap > 0) scores = all(step.softcap) * hyperbolic_tangent(scores / all(step.softcap));
    if (!step.slopes) return scores;
    if (!step.is_alibi_rounded) return scores + all(slope) * positions;
    Floats bias = all(slope) * (Floats)(rounded(positions) & 0xffff0000u);
    return scores + (Floats)(rounded(bias) & 0xffff0000u) * all(step.scale);
}

// Makes one query's scores of a span its weights, brings its sums to the new maximum and adds to those of
// weights. It sees the keys from ... to - 1, counted from the span's first, which stands at `start`.
static inline void soften(const Step& step, float* scores, int64_t start, int64_t from, int64_t to, float slope,
                          float& largest, float* sums, float* sums_of_values) {
    if (from >= to) return;
    Floats top = all(largest);
    for (int64_t i = from / BLOCK_SIZE * BLOCK_SIZE; i < to; i += BLOCK_SIZE)
        for (int64_t j = i; j < i + BLOCK_SIZE; j += LANES) {
            Ints places = lane_numbers() + (int32_t)j;
            Floats found = adjusted(step, load<Floats>(scores + j), slope,
                                    __builtin_convertvector(places + (int32_t)start, Floats));
            if (i < from || i + BLOCK_SIZE > to)
                found = (places < (int32_t)from) | (places >= (int32_t)to) ? all(-__builtin_inff()) : found;
            top = larger(found, top);
            store(scores + j, found);
        }
    float before = largest;
    largest = ::largest(top);
    bool is_first = before == -__builtin_inff();  // nothing was added so far
    float factor = is_first || before == largest ? 1 : exponential(all(before - largest))[0];
    Floats totals[KEY_VECTORS];
    for (int v = 0; v < KEY_VECTORS; v++) totals[v] = load<Floats>(sums + v * LANES) * all(factor);
    for (int64_t i = from / BLOCK_SIZE * BLOCK_SIZE; i < to; i += BLOCK_SIZE)
        for (int v = 0; v < KEY_VECTORS; v++) {
            float* at = scores + i + v * LANES;
            Floats weights = exponential(load<Floats>(at) - all(largest));
            totals[v] += weights;
            store(at, weights);
        }
    for (int v = 0; v < KEY_VECTORS; v++) store(sums + v * LANES, totals[v]);
    if (factor != 1.0f)
        for (int64_t i = 0; i < step.size; i += LANES)
            store(sums_of_values + i, load<Floats>(sums_of_values + i) * all(factor));
}

// Adds the values of the keys from ... to - 1, weighted, to Q sums of VECTORS vectors. Keys are counted from the
// span's first, as are `table` and `weights`.
template <class T, int Q, int VECTORS>
static inline void weigh_some(const T* values, const int32_t* table, int64_t size, int64_t from, int64_t to,
                              const float* weights, float* out) {
    Floats sums[Q][VECTORS];
    for (int n = 0; n < Q; n++)
        for (int v = 0; v < VECTORS; v++) sums[n][v] = load<Floats>(out + n * size + v * LANES);
    for (int64_t key = from / PACK<T> * PACK<T>; key < to; key += PACK<T>) {
        const T* row = values + (table[key / BLOCK_SIZE] * BLOCK_SIZE + key % BLOCK_SIZE) * size;
        Floats some[VECTORS][PACK<T>];
        for (int v = 0; v < VECTORS; v++) load_packed(row + v * LANES * PACK<T>, some[v]);
        for (int p = 0; p < PACK<T>; p++) {
            if ((uint64_t)(key + p - from) >= (uint64_t)(to - from)) continue;
            for (int n = 0; n < Q; n++)
                for (int v = 0; v < VECTORS; v++)
                    sums[n][v] = multiply_add(all(weights[n * SPAN + key + p]), some[v][p], sums[n][v]);
        }
    }
    for (int n = 0; n < Q; n++)
        for (int v = 0; v < VECTORS; v++) store(out + n * size + v * LANES, sums[n][v]);
}

template <class T, int Q>
static inline void weigh(const T* values, const int32_t* table, int64_t size, int64_t from, int64_t to,
                         const float* weights, float* out) {
    if (from >= to) return;
    constexpr int VECTORS = least(REGISTERS / Q, 64 / LANES);
    int64_t i = 0;
    for (; i + VECTORS * LANES <= size; i += VECTORS * LANES)
        weigh_some<T, Q, VECTORS>(values + i * PACK<T>, table, size, from, to, weights, out + i);
    for (; i < size; i += LANES)
        weigh_some<T, Q, 1>(values + i * PACK<T>, table, size, from, to, weights, out + i);
}

// What some queries, at most N, see of a span, counted from its first position; both ascend.
template <int N>
struct Seen {
    int64_t from[N], to[N];

    template <class T>
    Seen(const Item<T>& item, int64_t query, int64_t count, int64_t start) {
        for (int64_t n = 0; n < count; n++) {
            int64_t position = item.position + (query + n) / item.group;
            from[n] = most(0, position - item.window + 1 - start);
            to[n] = least(SPAN, position + 1 - start);
        }
    }
};

// The products of `count` queries, from `query` on, with the keys of the span that begins at `start`; Q at a time.
template <int Q, class T>
static void score_strips(const Step& step, const Item<T>& item, const float* queries, int64_t query, int64_t count,
                         int64_t start, float* scores) {
    constexpr int BLOCKS = least(REGISTERS / Q / KEY_VECTORS, 4);
    const int32_t* table = item.table + start / BLOCK_SIZE;
    for (; count >= Q; query += Q, count -= Q, scores += Q * SPAN) {
        Seen<Q> seen(item, query, Q, start);
        int64_t block = seen.from[0] / BLOCK_SIZE, end = (seen.to[Q - 1] + BLOCK_SIZE - 1) / BLOCK_SIZE, size = step.size;
        for (; block + BLOCKS <= end; block += BLOCKS)
            score<T, Q, BLOCKS>(queries + query * size, size, item.keys, item.values, table + block, scores + block * BLOCK_SIZE);
        for (; block < end; block++)
            score<T, Q, 1>(queries + query * size, size, item.keys, item.values, table + block, scores + block * BLOCK_SIZE);
    }
    if constexpr (Q > 1) score_strips<Q / 2>(step, item, queries, query, count, start, scores);
}

template <class T>
static void score_all(const Step& step, const Item<T>& item, const float* queries, int64_t query, int64_t count,
                      int64_t start, float* scores) {
    score_strips<LARGEST_STRIP>(step, item, queries, query, count, start, scores);
}

// What a thread needs for `score_all` and `weigh_all`, while it lasts.
template <class T>
struct TilesOf {
    TilesOf() {}
};

template <class T>
static void soften_query(const Step& step, const Item<T>& item, const State<T>& state, int64_t query, int64_t start,
                         int64_t from, int64_t to, float* scores) {
    int64_t head = item.first_head + query % item.group;
    soften(step, scores, start, from, to, step.slopes ? step.slopes[head] : 0, state.largest[query],
           state.sums + query * BLOCK_SIZE, state.sums_of_values + query * step.size);
}

// Softens the scores of `count` queries, from `query` on, and adds the values of a span to their sums; Q at a time.
template <int Q, class T>
static void weigh_strips(const Step& step, const Item<T>& item, const State<T>& state, int64_t query, int64_t count,
                         int64_t start, float* scores) {
    const int32_t* table = item.table + start / BLOCK_SIZE;
    int64_t size = step.size;
    for (; count >= Q; query += Q, count -= Q, scores += Q * SPAN) {
        Seen<Q> seen(item, query, Q, start);
        float* out = state.sums_of_values + query * size;
        for (int n = 0; n < Q; n++)
            soften_query(step, item, state, query + n, start, seen.from[n], seen.to[n], scores + n * SPAN);
        // What all see together; before it and behind, a few keys that some see, one by one.
        int64_t first = seen.from[Q - 1], last = most(first, seen.to[0]);
        for (int n = 0; n < Q; n++)
            weigh<T, 1>(item.values, table, size, seen.from[n], least(first, seen.to[n]), scores + n * SPAN, out + n * size);
        weigh<T, Q>(item.values, table, size, first, last, scores, out);
        for (int n = 0; n < Q; n++)
            weigh<T, 1>(item.values, table, size, last, seen.to[n], scores + n * SPAN, out + n * size);
    }
    if constexpr (Q > 1) weigh_strips<Q / 2>(step, item, state, query, count, start, scores);
}

template <class T>
static void weigh_all(const Step& step, const Item<T>& item, const State<T>& state, int64_t query, int64_t count,
                      int64_t start, float* scores) {
    weigh_strips<LARGEST_STRIP>(step, item, state, query, count, start, scores);
}
