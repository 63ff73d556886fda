// Products with a weight held in 4 or 8 bits, with a scale and a zero point for each group of inputs; x stays as it is.
//
// Block by block the weight becomes what it stands for, in x's dtype, and is multiplied as any other: the bits are
// those of `linear` with the decoded weight.
#pragma once

#include "linear.h"

// As in model/quantization/linear.py. codes: [outputs, groups * size / codes in a byte], unsigned if of 4 bits, signed
// if of 8; scales: [outputs, groups] of scale_kind, zeros: [outputs, groups], like codes, or null; table: [16] or null.
struct Packed {
    const uint8_t* codes;
    const void* scales;
    const uint8_t* zeros;
    const float* table;
    int32_t bits, scale_kind;
    int64_t groups, size;

    float scale(int64_t at) const {
        if (scale_kind == FLOAT16) return widened_half(((const uint16_t*)scales)[at]);
        return scale_kind == FLOAT32 ? ((const float*)scales)[at] : widened(((const bfloat16*)scales)[at]);
    }
};

// to[i] = values[code i], two codes in a byte, the earlier in the lower half. The last of `size` may be half a byte.
template <class T>
static inline void pick(const T (&values)[16], const uint8_t* codes, int64_t begin, int64_t size, T* to) {
    for (int64_t i = begin; i + 2 <= size; i += 2) {
        to[i] = values[codes[i / 2] & 15];
        to[i + 1] = values[codes[i / 2] >> 4];
    }
}

#if defined(__AVX2__)
// 32 codes, each in a byte, in their order.
static inline void unpack_codes(const uint8_t* codes, __m128i (&to)[2]) {
    __m128i bytes = load<__m128i>(codes), mask = _mm_set1_epi8(15);
    __m128i even = _mm_and_si128(bytes, mask), odd = _mm_and_si128(_mm_srli_epi16(bytes, 4), mask);
    to[0] = _mm_unpacklo_epi8(even, odd);
    to[1] = _mm_unpackhi_epi8(even, odd);
}

static inline void pick_all(const bfloat16 (&values)[16], const uint8_t* codes, int64_t size, bfloat16* to) {
    __m128i a = load<__m128i>(values), b = load<__m128i>(values + 8), low = _mm_set1_epi16(255);
    __m128i lower = _mm_packus_epi16(_mm_and_si128(a, low), _mm_and_si128(b, low));
    __m128i upper = _mm_packus_epi16(_mm_srli_epi16(a, 8), _mm_srli_epi16(b, 8));
    int64_t i = 0;
    for (; i + 32 <= size; i += 32) {
        __m128i places[2];
        unpack_codes(codes + i / 2, places);
        for (int half = 0; half < 2; half++) {
            __m128i x = _mm_shuffle_epi8(lower, places[half]), y = _mm_shuffle_epi8(upper, places[half]);
            store(to + i + 16 * half, _mm_unpacklo_epi8(x, y));
            store(to + i + 16 * half + 8, _mm_unpackhi_epi8(x, y));
        }
    }
    pick(values, codes, i, size, to);
}

static inline void pick_all(const float (&values)[16], const uint8_t* codes, int64_t size, float* to) {
    int64_t i = 0;
    __m256 a = load<__m256>(values), b = load<__m256>(values + 8);
    for (; i + 32 <= size; i += 32) {
        uint8_t places[32];
        __m128i unpacked[2];
        unpack_codes(codes + i / 2, unpacked);
        store(places, unpacked[0]);
        store(places + 16, unpacked[1]);
        for (int part = 0; part < 32; part += 8) {
            __m256i place = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(places + part)));
            __m256 is_upper = _mm256_castsi256_ps(_mm256_slli_epi32(place, 28));  // in the sign, which is what is asked
            __m256 x = _mm256_permutevar8x32_ps(a, place), y = _mm256_permutevar8x32_ps(b, place);
            store(to + i + part, _mm256_blendv_ps(x, y, is_upper));
        }
    }
    pick(values, codes, i, size, to);
}
#else
template <class T>
static inline void pick_all(const T (&values)[16], const uint8_t* codes, int64_t size, T* to) {
    pick(values, codes, 0, size, to);
}
#endif

// An output's weights. to: [whole groups, at least].
template <class T>
static void decode(const Packed& packed, int64_t output, T* to) {
    for (int64_t group = output * packed.groups; group < (output + 1) * packed.groups; group++, to += packed.size) {
        float scale = packed.scale(group);
        if (packed.bits == 8) {
            const int8_t* codes = (const int8_t*)packed.codes + group * packed.size;
            float zero = packed.zeros ? (int8_t)packed.zeros[group] : 0;
            for (int64_t i = 0; i < packed.size; i++) narrow((codes[i] - zero) * scale, to[i]);
        } else {
            float zero = packed.zeros ? packed.zeros[group] : 0;
            T values[16];  // which are all that a code can stand for
            for (int i = 0; i < 16; i++) narrow(((packed.table ? packed.table[i] : i) - zero) * scale, values[i]);
            pick_all(values, packed.codes + group * packed.size / 2, packed.size, to);
        }
    }
}

// y = W x + b. x: [rows, inputs], bias: [outputs] or null, out: [rows, outputs]. A group is whole bytes. -1 if there is
// no memory.
template <class T>
static int linear_packed(int64_t rows, const T* x, const uint8_t* codes, const void* scales, const uint8_t* zeros,
                         const float* table, const T* bias, T* out, int32_t bits, int32_t scale_kind, int64_t groups,
                         int64_t size, int64_t inputs, int64_t outputs) {
    Packed packed = {codes, scales, zeros, table, bits, scale_kind, groups, size};
    int64_t stride = rounded_up(packed.groups * packed.size, 64);
    int64_t block = Products<T>::block(outputs, stride * sizeof(T));
    T* weights = allocated<T>(omp_get_max_threads() * block * stride);
    if (!weights) return -1;
    auto fetch = [=](int64_t first, int64_t last) {
        T* decoded = weights + omp_get_thread_num() * block * stride;
        for (int64_t output = first; output < last; output++) decode(packed, output, decoded + (output - first) * stride);
        return decoded;
    };
    FinishLinear<T> finish = {bias, out, outputs};
    int result = Products<T>::multiply(x, rows, stride, inputs, outputs, block, fetch, finish);
    free(weights);
    return result;
}
