// SHA-256, as FIPS 180-4 has it, of as many messages at once as a vector has lanes: each in a lane of its own.
//
// One message is a chain of steps that wait for each other, also in the processor's own instructions for it.
#pragma once

#include "vector.h"

constexpr int64_t CHUNK_WORDS = 16, CHUNK_BYTES = 4 * CHUNK_WORDS, STATE_WORDS = 8;

static constexpr uint32_t ROUND_CONSTANTS[] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};
static constexpr uint32_t FIRST_STATE[STATE_WORDS] = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

static inline Words rotated(Words x, int by) { return x >> by | x << (32 - by); }

// Words are stored with their first byte on top.
static inline Words swapped(Words x) { return x << 24 | (x & 0xff00) << 8 | (x >> 8 & 0xff00) | x >> 24; }

// Swaps the squares of SIDE words beside the diagonal, in each square of twice that. All sides in turn transpose.
template <int SIDE>
static inline void swap_squares(Words* rows) {
    Ints left = lane_numbers(), right = left + SIDE;
    left = (left & SIDE) ? left - SIDE + LANES : left;
    right = (right & SIDE) ? right : right - SIDE + LANES;
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) {
        if (i & SIDE) continue;
        Words a = rows[i], b = rows[i + SIDE];
        rows[i] = __builtin_shuffle(a, b, left);
        rows[i + SIDE] = __builtin_shuffle(a, b, right);
    }
}

// The words of the next chunk, of each lane's message.
static inline void load_chunk(const uint8_t* const (&messages)[LANES], int64_t at, Words (&w)[CHUNK_WORDS]) {
#pragma GCC unroll 16
    for (int first = 0; first < CHUNK_WORDS; first += LANES) {
        for (int lane = 0; lane < LANES; lane++) w[first + lane] = load<Words>(messages[lane] + at + 4 * first);
        swap_squares<1>(w + first);
        swap_squares<2>(w + first);
        if (LANES > 4) swap_squares<4>(w + first);
        if (LANES > 8) swap_squares<8>(w + first);
    }
    for (Words& word : w) word = swapped(word);
}

// w is used up.
static inline void take_in(Words (&w)[CHUNK_WORDS], Words (&state)[STATE_WORDS]) {
    Words a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6], h = state[7];
#pragma GCC unroll 64
    for (int t = 0; t < 64; t++) {
        Words& now = w[t % 16];
        if (t >= 16) {
            Words x = w[(t + 1) % 16], y = w[(t + 14) % 16];
            now += (rotated(x, 7) ^ rotated(x, 18) ^ x >> 3) + w[(t + 9) % 16] + (rotated(y, 17) ^ rotated(y, 19) ^ y >> 10);
        }
        Words one = h + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) + ((e & f) ^ (~e & g)) + ROUND_CONSTANTS[t] + now;
        Words two = (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + one, d = c, c = b, b = a, a = one + two;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d, state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

// messages: [rows, size], size a multiple of CHUNK_BYTES; digests: [rows, 4 * STATE_WORDS]. Of one thread.
template <class Byte>
static int sha256(int64_t rows, const Byte* messages, Byte* digests, int64_t size) {
    for (int64_t row = 0; row < rows; row += LANES) {
        const uint8_t* of_lane[LANES];  // lanes too many have the last message, too
        for (int lane = 0; lane < LANES; lane++)
            of_lane[lane] = messages + (row + lane < rows ? row + lane : rows - 1) * size;
        Words state[STATE_WORDS], w[CHUNK_WORDS] = {};
        for (int i = 0; i < STATE_WORDS; i++) state[i] = FIRST_STATE[i] - Words{};
        for (int64_t at = 0; at < size; at += CHUNK_BYTES) {
            load_chunk(of_lane, at, w);
            take_in(w, state);
        }
        for (Words& word : w) word = Words{};  // the padding: a bit, zeros, the number of bits
        w[0] += 0x80000000u;
        w[14] += (uint32_t)(size >> 29);
        w[15] += (uint32_t)(size << 3);
        take_in(w, state);
        for (int i = 0; i < STATE_WORDS; i++) state[i] = swapped(state[i]);
        for (int lane = 0; lane < LANES && row + lane < rows; lane++)
            for (int i = 0; i < STATE_WORDS; i++) {
                uint32_t word = state[i][lane];
                memcpy(digests + 4 * (STATE_WORDS * (row + lane) + i), &word, 4);
            }
    }
    return 0;
}
