// Activations to int8 panels, in 256-bit vectors: a microsecond per row on any of our instruction sets.
// Included by the ISA files; internal linkage for the same reason as tiles.h.
#pragma once

#include <immintrin.h>

#include "isa.h"

namespace pgl::kernels {
namespace {

constexpr float smallest = 1e-36f;  // below it the reciprocal overflows; such a block counts as zero

inline uint32_t float_bits(float value) {
    uint32_t word;
    __builtin_memcpy(&word, &value, 4);
    return word;
}

inline float bits_float(uint32_t word) {
    float value;
    __builtin_memcpy(&value, &word, 4);
    return value;
}

inline int sum_lanes(__m256i v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    return _mm_cvtsi128_si32(s);
}

/// The largest magnitude as an integer: an order that puts infinities and NaNs on top instead of losing them.
inline uint32_t largest_bits(const float * x, int n) {
    __m256i top = _mm256_setzero_si256();
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    for (int i = 0; i < n; i += 8) {
        const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(x + i));
        top = _mm256_max_epi32(top, _mm256_and_si256(v, magnitude));
    }
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(m));
}

/// The first value of that magnitude.
inline float first_of(const float * x, uint32_t bits) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff), wanted = _mm256_set1_epi32(static_cast<int>(bits));
    for (int i = 0;; i += 8) {
        const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(x + i));
        const __m256i hit = _mm256_cmpeq_epi32(_mm256_and_si256(v, magnitude), wanted);
        const int lanes = _mm256_movemask_ps(_mm256_castsi256_ps(hit));
        if (lanes) {
            return x[i + __builtin_ctz(static_cast<unsigned>(lanes))];
        }
    }
}

/// 32 values to codes; adds them up in two halves of 16.
inline void codes_32(const float * x, __m256 inverse, uint32_t * words, int * sums) {
    __m256i v[4];
    for (int i = 0; i < 4; ++i) {
        v[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), inverse));
    }
    sums[0] = sum_lanes(_mm256_add_epi32(v[0], v[1]));
    sums[1] = sum_lanes(_mm256_add_epi32(v[2], v[3]));
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(words), _mm256_permutevar8x32_epi32(bytes, order));
}

void quantize_32(const float * row, int64_t first, int64_t last, uint32_t * panel, int nt, int token) {
    for (int64_t block = first; block < last; ++block) {
        const float * x = row + block * 32;
        uint32_t * out = panel + block * words_32 * nt + token;
        const uint32_t top = largest_bits(x, 32);
        const float magnitude = bits_float(top);
        uint32_t words[8] = {};
        int sums[2] = {};
        float scale = __builtin_nanf("");
        if (top < 0x7f800000u) {
            scale = 0;
            if (magnitude >= smallest) {
                scale = magnitude / 127.0f;
                codes_32(x, _mm256_set1_ps(127.0f / magnitude), words, sums);
            }
        }
        const int sum = sums[0] + sums[1];
        for (int i = 0; i < 8; ++i) {
            out[i * nt] = words[i];
        }
        out[8 * nt] = static_cast<uint32_t>(-8 * sum);
        out[9 * nt] = static_cast<uint32_t>(-128 * sum);
        out[10 * nt] = float_bits(scale);
        out[11 * nt] = float_bits(scale * static_cast<float>(sum));
    }
}

void quantize_256(const float * row, int64_t first, int64_t last, uint32_t * panel, int nt, int token) {
    for (int64_t block = first; block < last; ++block) {
        const float * x = row + block * 256;
        uint32_t * out = panel + block * words_256 * nt + token;
        const uint32_t top = largest_bits(x, 256);
        uint32_t words[64] = {};
        int sums[16] = {};
        float scale = __builtin_nanf("");
        if (top < 0x7f800000u) {
            scale = 0;
            if (bits_float(top) >= smallest) {
                const float inverse = -127.0f / first_of(x, top);
                scale = 1.0f / inverse;
                for (int s = 0; s < 8; ++s) {
                    codes_32(x + 32 * s, _mm256_set1_ps(inverse), words + 8 * s, sums + 2 * s);
                }
            }
        }
        for (int i = 0; i < 64; ++i) {
            out[i * nt] = words[i];
        }
        for (int s = 0; s < 16; ++s) {
            out[(64 + s) * nt] = static_cast<uint32_t>(-32 * sums[s]);
        }
        for (int p = 0; p < 4; ++p) {
            const auto low = static_cast<uint32_t>(sums[4 * p] + sums[4 * p + 1]) & 0xffff;
            out[(80 + p) * nt] = low | static_cast<uint32_t>(sums[4 * p + 2] + sums[4 * p + 3]) << 16;
        }
        out[84 * nt] = float_bits(scale);
    }
}

}  // namespace
}  // namespace pgl::kernels
