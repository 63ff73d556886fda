// Attention of a step's rows, some prompts and then a row more of each, against its formula in float64.
#pragma once

#include <algorithm>
#include <cmath>

#include "check_numbers.h"

// As in paged.h.
struct Step {
    int64_t num_sequences, num_blocks, num_heads, num_kv_heads, head_dim, size;
    const int64_t *starts, *first_rows, *first_blocks;
    const int32_t* tables;
    void *keys, *values;
    const float* slopes;
    float scale, softcap;
    int32_t is_alibi_rounded;
};

constexpr int64_t BLOCK_SIZE = 16;
constexpr int64_t LENGTHS[] = {1, 17, 60, 319};  // of the prompts; with one row more, the last fills all blocks of its table
constexpr int64_t NUM_SEQUENCES = 4, BLOCKS_OF_EACH = 20, NUM_KV_HEADS = 2;

// Heads of some rows: [rows, heads, size].
template <class T>
struct Heads {
    int64_t heads, size;
    vector<T> numbers;

    float at(int64_t row, int64_t head, int64_t i) const { return widened(numbers[(row * heads + head) * size + i]); }

    // Those of a step: of each sequence the rows from its start on, as many as first_rows says.
    Heads of_step(const vector<int64_t>& starts, const vector<int64_t>& first_rows) const {
        Heads some = {heads, size, {}};
        some.numbers.reserve(first_rows.back() * heads * size);
        for (int64_t s = 0; s < NUM_SEQUENCES; s++) {
            auto from = numbers.begin() + (s * BLOCKS_OF_EACH * BLOCK_SIZE + starts[s]) * heads * size;
            some.numbers.insert(some.numbers.end(), from, from + (first_rows[s + 1] - first_rows[s]) * heads * size);
        }
        return some;
    }
};

// What some decoders have beside. sinks: whether each head has one more score, of no key.
struct Kind {
    float softcap;
    bool has_slopes, is_rounded, has_sinks;

    float slope(int64_t head) const { return 0.02f / (1 + head); }
    float sink(int64_t head) const { return 3.0f * head - 2; }

    // A score of a product that is scaled, with the key at `position`.
    double adjusted(double score, int64_t head, int64_t position, float scale) const {
        if (softcap > 0) score = softcap * std::tanh(score / softcap);
        if (!has_slopes) return score;
        if (!is_rounded) return score + (double)slope(head) * position;
        bfloat16 rounded, bias;
        narrow(position, rounded);
        narrow(slope(head) * widened(rounded), bias);
        return score + (double)widened(bias) * scale;
    }
};

// Whether what was found for the query at `row` is the weighted sum of the values that it sees, from row `first` on;
// the sequence begins at row `base`. To 2^-16 of float32's numbers and 2^-8 of bfloat16's, and what scores are rounded by.
template <class T>
static bool row_is_right(const Heads<T>& q, const Heads<T>& k, const Heads<T>& v, const T* found, int64_t row,
                         int64_t head, int64_t first, int64_t base, float scale, const Kind& kind) {
    int64_t kv_head = head / (q.heads / k.heads);
    std::vector<double> weights;
    double largest = kind.has_sinks ? kind.sink(head) : -INFINITY;
    for (int64_t key = first; key <= row; key++) {
        double score = 0;
        for (int64_t i = 0; i < q.size; i++) score += (double)q.at(row, head, i) * k.at(key, kv_head, i);
        weights.push_back(kind.adjusted(score * scale, head, key - base, scale));
        largest = std::fmax(largest, weights.back());
    }
    double total = kind.has_sinks ? std::exp(kind.sink(head) - largest) : 0;
    for (double& weight : weights) total += weight = std::exp(weight - largest);
    // Scores of 32 at most, here, weigh values below 4; products alone need no rounding, so small are their factors.
    double error_of_scores = kind.softcap > 0 || kind.has_slopes ? 4 * 32 * 0x1p-24 : 0;
    for (int64_t i = 0; i < q.size; i++) {
        double sum = 0;
        for (int64_t key = first; key <= row; key++) sum += weights[key - first] / total * v.at(key, kv_head, i);
        double unit = sizeof(T) == 4 ? 0x1p-16 : 0x1p-8;
        double error = std::fabs(widened(found[i]) - sum), bound = unit * (std::fabs(sum) + 0.1) + error_of_scores;
        if (!(error <= bound)) return false;
    }
    return true;
}

template <class T>
static bool attention_is_right(Kernel* attend, Random& random, int64_t group, int64_t head_dim, int64_t window,
                               const Kind& kind = {}) {
    int64_t num_heads = group * NUM_KV_HEADS, size = (head_dim + 15) / 16 * 16;
    int64_t num_blocks = NUM_SEQUENCES * BLOCKS_OF_EACH, num_rows = num_blocks * BLOCK_SIZE;
    Heads<T> q = {num_heads, head_dim, random.numbers<T>(num_rows * num_heads * head_dim)};
    Heads<T> k = {NUM_KV_HEADS, head_dim, random.numbers<T>(num_rows * NUM_KV_HEADS * head_dim)};
    Heads<T> v = {NUM_KV_HEADS, head_dim, random.numbers<T>(num_rows * NUM_KV_HEADS * head_dim)};
    vector<T> keys(NUM_KV_HEADS * num_rows * size), values(keys.size());
    memset(keys.data(), 0xff, keys.size() * sizeof(T));  // NaN, wherever nothing is written
    memset(values.data(), 0xff, values.size() * sizeof(T));
    vector<int32_t> tables(num_blocks);
    for (int64_t i = 0; i < num_blocks; i++) tables[i] = (i * 7 + 3) % num_blocks;  // 7 divides no num_blocks here
    vector<int64_t> starts(NUM_SEQUENCES), first_rows(NUM_SEQUENCES + 1), first_blocks(NUM_SEQUENCES + 1);
    for (int64_t s = 0; s < NUM_SEQUENCES; s++) {
        first_rows[s + 1] = first_rows[s] + LENGTHS[s];
        first_blocks[s + 1] = first_blocks[s] + BLOCKS_OF_EACH;
    }
    vector<float> slopes(num_heads), sinks(num_heads);
    for (int64_t head = 0; head < num_heads; head++) {
        slopes[head] = kind.slope(head);
        sinks[head] = kind.sink(head);
    }
    Step step = {NUM_SEQUENCES, num_blocks, num_heads, NUM_KV_HEADS, head_dim, size, starts.data(), first_rows.data(),
                 first_blocks.data(), tables.data(), keys.data(), values.data(),
                 kind.has_slopes ? slopes.data() : nullptr, 0.25f, kind.softcap, kind.is_rounded};
    bool all = true;
    auto run = [&] {
        auto of_step = [&](const Heads<T>& heads) { return heads.of_step(starts, first_rows).numbers; };
        vector<T> some_q = of_step(q), some_k = of_step(k), some_v = of_step(v), out(some_q.size());
        call(attend, first_rows.back(), some_q.data(), some_k.data(), some_v.data(),
             kind.has_sinks ? sinks.data() : nullptr, out.data(), &step, 0, window);
        for (int64_t s = 0; s < NUM_SEQUENCES; s++)
            for (int64_t row = first_rows[s]; row < first_rows[s + 1]; row++)
                for (int64_t head = 0; head < num_heads; head++) {
                    int64_t position = starts[s] + row - first_rows[s], base = s * BLOCKS_OF_EACH * BLOCK_SIZE;
                    all &= row_is_right(q, k, v, out.data() + (row * num_heads + head) * head_dim, base + position, head,
                                        base + std::max<int64_t>(0, position - window + 1), base, step.scale, kind);
                }
    };
    run();
    for (int64_t s = 0; s < NUM_SEQUENCES; s++) {
        starts[s] = LENGTHS[s];
        first_rows[s + 1] = s + 1;
    }
    run();
    return all;
}
