// Attention of a step's rows, each against the keys and values of its own sequence in the paged cache.
//
// A row's bits depend on its own query and on the keys that it sees: a score is a sum over the head's numbers in
// their order; softmax's sums and the weighted sum of the values run over the keys in the order of their positions,
// brought to a larger maximum at most once in each span of positions, and spans are counted from 0. Keys that a row
// does not see are left out; what lies in their slots may be anything.
#pragma once

#include <omp.h>

#include "functions.h"
#include "paged.h"

constexpr int SPAN = 256;         // positions; a multiple of BLOCK_SIZE
constexpr int TILE_QUERIES = 64;  // those of one item, about: they share what is read into a core's cache

constexpr int KEY_VECTORS = BLOCK_SIZE / LANES;
constexpr int REGISTERS = LANES == 16 ? 16 : 8;  // that hold sums: about half of those there are
constexpr int LARGEST_STRIP = LANES == 16 ? 8 : REGISTERS / KEY_VECTORS;  // queries computed together

// Consecutive rows of one sequence with the heads that share one head of the cache.
template <class T>
struct Item {
    const T *keys, *values;  // of the head: [num_blocks, a block]
    const int32_t* table;
    int64_t position, num_queries;  // of the first row; queries are ordered by row, then by head
    int64_t group, first_head, window;
};

// What an item's queries have come to: [num_queries] of each.
struct State {
    float *queries, *sums_of_values;  // [size]
    float *sums;                      // [BLOCK_SIZE] of weights, by position modulo BLOCK_SIZE
    float *largest;
    float *scores;  // [LARGEST_STRIP, SPAN] of those computed together
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

// Capped, and with ALiBi's bias, where a decoder has these. See model/attention.py.
static inline Floats adjusted(const Step& step, Floats scores, float slope, Floats positions) {
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
    Ints lanes;
    for (int i = 0; i < LANES; i++) lanes[i] = i;
    Floats top = all(largest);
    for (int64_t i = from / BLOCK_SIZE * BLOCK_SIZE; i < to; i += BLOCK_SIZE)
        for (int64_t j = i; j < i + BLOCK_SIZE; j += LANES) {
            Ints places = lanes + (int32_t)j;
            Floats found = adjusted(step, load<Floats>(scores + j), slope,
                                    __builtin_convertvector(places + (int32_t)start, Floats));
            found = (places < (int32_t)from) | (places >= (int32_t)to) ? all(-__builtin_inff()) : found;
            top = found > top ? found : top;
            store(scores + j, found);
        }
    float before = largest;
    for (int i = 0; i < LANES; i++) largest = top[i] > largest ? top[i] : largest;
    float factor = exponential(all(before - largest))[0];
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

// Q queries, from `query` on, with the span that begins at `start`.
template <class T, int Q>
static void attend_strip(const Step& step, const Item<T>& item, const State& state, int64_t query, int64_t start) {
    int64_t from[Q], to[Q];  // what each sees of the span; both ascend
    for (int n = 0; n < Q; n++) {
        int64_t position = item.position + (query + n) / item.group;
        from[n] = most(0, position - item.window + 1 - start);
        to[n] = least(SPAN, position + 1 - start);
    }
    if (from[0] >= to[Q - 1]) return;
    const int32_t* table = item.table + start / BLOCK_SIZE;
    int64_t block = from[0] / BLOCK_SIZE, end = (to[Q - 1] + BLOCK_SIZE - 1) / BLOCK_SIZE, size = step.size;
    const float* queries = state.queries + query * size;
    constexpr int BLOCKS = least(REGISTERS / Q / KEY_VECTORS, 4);
    for (; block + BLOCKS <= end; block += BLOCKS)
        score<T, Q, BLOCKS>(queries, size, item.keys, item.values, table + block, state.scores + block * BLOCK_SIZE);
    for (; block < end; block++)
        score<T, Q, 1>(queries, size, item.keys, item.values, table + block, state.scores + block * BLOCK_SIZE);
    for (int n = 0; n < Q; n++) {
        int64_t head = item.first_head + (query + n) % item.group;
        soften(step, state.scores + n * SPAN, start, from[n], to[n], step.slopes ? step.slopes[head] : 0,
               state.largest[query + n], state.sums + (query + n) * BLOCK_SIZE, state.sums_of_values + (query + n) * size);
    }
    // What all see together; before it and behind, a few keys that some see, one by one.
    int64_t first = from[Q - 1], last = most(first, to[0]);
    float* out = state.sums_of_values + query * size;
    for (int n = 0; n < Q; n++)
        weigh<T, 1>(item.values, table, size, from[n], least(first, to[n]), state.scores + n * SPAN, out + n * size);
    weigh<T, Q>(item.values, table, size, first, last, state.scores, out);
    for (int n = 0; n < Q; n++)
        weigh<T, 1>(item.values, table, size, last, to[n], state.scores + n * SPAN, out + n * size);
}

template <class T, int Q>
static void attend_span(const Step& step, const Item<T>& item, const State& state, int64_t query, int64_t start) {
    for (; query + Q <= item.num_queries; query += Q) attend_strip<T, Q>(step, item, state, query, start);
    if constexpr (Q > 1) attend_span<T, Q / 2>(step, item, state, query, start);
}

// All of an item. q, out: [num_tokens, num_heads, head_dim], from the item's first row and head on.
template <class T>
static void attend_item(const Step& step, const Item<T>& item, const State& state, const T* q, const float* sinks,
                        T* out) {
    for (int64_t n = 0; n < item.num_queries; n++) {
        const T* row = q + (n / item.group * step.num_heads + n % item.group) * step.head_dim;
        float* query = state.queries + n * step.size;
        for (int64_t i = 0; i < step.head_dim; i++) query[i] = widened(row[i]) * step.scale;
        for (int64_t i = step.head_dim; i < step.size; i++) query[i] = 0;
        // A sink is one more score, of weight 1 while it is the largest.
        state.largest[n] = sinks ? sinks[item.first_head + n % item.group] : -__builtin_inff();
        for (int i = 0; i < BLOCK_SIZE; i++) state.sums[n * BLOCK_SIZE + i] = sinks && i == 0;
    }
    memset(state.sums_of_values, 0, item.num_queries * step.size * sizeof(float));
    int64_t last = item.position + (item.num_queries - 1) / item.group;
    for (int64_t start = most(0, item.position - item.window + 1) / SPAN * SPAN; start <= last; start += SPAN)
        attend_span<T, LARGEST_STRIP>(step, item, state, 0, start);
    for (int64_t n = 0; n < item.num_queries; n++) {
        Floats totals = {};
        for (int v = 0; v < KEY_VECTORS; v++) totals += load<Floats>(state.sums + n * BLOCK_SIZE + v * LANES);
        float total = sum(totals);
        T* row = out + (n / item.group * step.num_heads + n % item.group) * step.head_dim;
        for (int64_t i = 0; i < step.head_dim; i++) narrow(state.sums_of_values[n * step.size + i] / total, row[i]);
    }
}

// The memory of a thread, in floats, and its parts.
static inline int64_t state_size(int64_t num_queries, int64_t size) {
    return (num_queries * (2 * size + BLOCK_SIZE + 1) + LARGEST_STRIP * SPAN + 15) / 16 * 16;
}

static inline State state_at(float* memory, int64_t num_queries, int64_t size) {
    State state;
    state.queries = memory;
    state.sums_of_values = state.queries + num_queries * size;
    state.sums = state.sums_of_values + num_queries * size;
    state.scores = state.sums + num_queries * BLOCK_SIZE;
    state.largest = state.scores + LARGEST_STRIP * SPAN;
    return state;
}

// Writes the rows k, v: [num_tokens, num_kv_heads, head_dim] to the cache of a layer, then looks up each row of q.
// q, out: [num_tokens, num_heads, head_dim]; sinks: [num_heads] or null; window: how many keys a row sees, its own
// included. -1 if there is no memory.
template <class T>
static int attend(int64_t, const T* q, const T* k, const T* v, const float* sinks, T* out, const Step* of_rows,
                  int64_t layer, int64_t window) {
    const Step& step = *of_rows;
    int64_t group = step.num_heads / step.num_kv_heads, height = most(1, TILE_QUERIES / group), num_tiles;
    int64_t head_size = step.num_blocks * BLOCK_SIZE * step.size;
    T* keys = (T*)step.keys + layer * step.num_kv_heads * head_size;
    T* values = (T*)step.values + layer * step.num_kv_heads * head_size;
    int64_t floats = state_size(height * group, step.size);
    auto* memory = (float*)aligned_alloc(64, omp_get_max_threads() * floats * sizeof(float));
    Rows* tiles = cut(step, height, num_tiles);
    int64_t num_items = num_tiles * step.num_kv_heads;
    if (!memory || !tiles) {
        free(memory);
        free(tiles);
        return -1;
    }
#pragma omp parallel if (num_items > 1)
    {
        State state = state_at(memory + omp_get_thread_num() * floats, height * group, step.size);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < num_items; i++) {
            int64_t head = i / num_tiles, at = head * head_size;
            write_rows(step, tiles[i % num_tiles], head, k, v, keys + at, values + at);
        }
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < num_items; i++) {
            int64_t head = i / num_tiles;
            const Rows& rows = tiles[num_tiles - 1 - i % num_tiles];  // a prompt's last rows see most: they come first
            int64_t place = (rows.first * step.num_heads + head * group) * step.head_dim;
            Item<T> item = {keys + head * head_size, values + head * head_size,
                            step.tables + step.first_blocks[rows.sequence], position_of(step, rows),
                            (rows.last - rows.first) * group, group, head * group, window};
            attend_item(step, item, state, q + place, sinks, out + place);
        }
    }
    free(memory);
    free(tiles);
    return 0;
}
