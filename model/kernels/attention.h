// Attention of a step's rows, each against the keys and values of its own sequence in the paged cache.
//
// A row's bits depend on its own query and on the keys that it sees: a score is a sum over the head's numbers in
// their order; softmax's sums run over the keys in the order of their positions, the weighted sum of the values in an
// order that the row's own position decides, brought to a larger maximum at most once in each span of positions, and
// spans are counted from 0. Keys that a row does not see are left out; what lies in their slots may be anything.
#pragma once

#include <omp.h>

#include "attention_strips.h"
#include "attention_tiles.h"

constexpr int TILE_QUERIES = 64;  // those of one item, about: they share what is read into a core's cache

// All of an item. q, out: [num_tokens, num_heads, head_dim], from the item's first row and head on.
template <class T>
static void attend_item(const Step& step, const Item<T>& item, const State<T>& state, const T* q, const float* sinks,
                        T* out) {
    for (int64_t n = 0; n < item.num_queries; n++) {
        const T* row = q + (n / item.group * step.num_heads + n % item.group) * step.head_dim;
        auto* query = state.queries + n * step.size;
        copied(row, step.head_dim, query);
        for (int64_t i = step.head_dim; i < step.size; i++) query[i] = 0;
        // A sink is one more score, of weight 1 while it is the largest.
        state.largest[n] = sinks ? sinks[item.first_head + n % item.group] : -__builtin_inff();
        for (int i = 0; i < BLOCK_SIZE; i++) state.sums[n * BLOCK_SIZE + i] = sinks && i == 0;
    }
    int64_t missing = rounded_up(item.num_queries, SCORED) - item.num_queries;
    memset(state.queries + item.num_queries * step.size, 0, missing * step.size * sizeof *state.queries);
    memset(state.sums_of_values, 0, item.num_queries * step.size * sizeof(float));
    int64_t last = item.position + (item.num_queries - 1) / item.group;
    for (int64_t start = most(0, item.position - item.window + 1) / SPAN * SPAN; start <= last; start += SPAN)
        for (int64_t query = 0; query < item.num_queries; query += SCORED) {
            int64_t count = least(SCORED, item.num_queries - query);
            if (start > item.position + (query + count - 1) / item.group) continue;  // of what begins here they see nothing
            score_all(step, item, state.queries, query, count, start, state.scores);
            weigh_all(step, item, state, query, count, start, state.scores);
        }
    for (int64_t n = 0; n < item.num_queries; n++) {
        Floats totals = {};
        for (int v = 0; v < KEY_VECTORS; v++) totals += load<Floats>(state.sums + n * BLOCK_SIZE + v * LANES);
        float share = 1 / sum(totals);
        T* row = out + (n / item.group * step.num_heads + n % item.group) * step.head_dim;
        for (int64_t i = 0; i < step.head_dim; i++) narrow(state.sums_of_values[n * step.size + i] * share, row[i]);
    }
}

// The memory of a thread, in floats, and its parts.
static inline int64_t state_size(int64_t num_queries, int64_t size) {
    return (num_queries * (2 * size + BLOCK_SIZE + 1) + SCORED * (SPAN + size) + 15) / 16 * 16;
}

template <class T>
static inline State<T> state_at(float* memory, int64_t num_queries, int64_t size) {
    State<T> state;
    state.scores = memory;
    state.kept = state.scores + SCORED * SPAN;
    state.queries = (typename QueryOf<T>::Type*)(state.kept + SCORED * size);
    state.sums_of_values = state.kept + SCORED * size + num_queries * size;
    state.sums = state.sums_of_values + num_queries * size;
    state.largest = state.sums + num_queries * BLOCK_SIZE;
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
    int64_t num_queries = rounded_up(height * group, SCORED), floats = state_size(num_queries, step.size);
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
        TilesOf<T> tiles_of_thread;
        State<T> state = state_at<T>(memory + omp_get_thread_num() * floats, num_queries, step.size);
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
