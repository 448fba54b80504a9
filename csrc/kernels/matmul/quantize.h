// Activations to int8 panels, in 256-bit vectors: a microsecond per row on any of our instruction sets.
// Included by the ISA files; internal linkage for the same reason as tile.h.
#pragma once

#include <immintrin.h>

#include "kernels/isa.h"

namespace pgl::kernels {
namespace {

/// Of the magnitudes of 16 codes: up to here 32 times as much fits 16 bits, and so does any sum of a field
/// (tiles_256.h).
constexpr short field_limit = 1023;
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

/// 32 values to codes.
inline __m256i codes_32(const float * x, __m256 inverse) {
    __m256i v[4];
    for (int i = 0; i < 4; ++i) {
        v[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), inverse));
    }
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
    return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/// Per half of 16 codes: one word with the sum of those at even pairs of k in its low half, at odd pairs in its high
/// half.
inline void pair_sums(__m256i codes, uint32_t * words) {
    __m256i s = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
    s = _mm256_add_epi16(s, _mm256_shuffle_epi32(s, 0x4e));
    s = _mm256_add_epi16(s, _mm256_shuffle_epi32(s, 0xb1));
    words[0] = static_cast<uint32_t>(_mm_cvtsi128_si32(_mm256_castsi256_si128(s)));
    words[1] = static_cast<uint32_t>(_mm_cvtsi128_si32(_mm256_extracti128_si256(s, 1)));
}

/// Per half, in its 16-bit lanes: the sum of magnitudes of its 16 codes.
inline __m256i magnitudes(__m256i codes) {
    __m256i s = _mm256_sad_epu8(_mm256_abs_epi8(codes), _mm256_setzero_si256());
    return _mm256_add_epi16(s, _mm256_shuffle_epi32(s, 0x4e));
}

inline int low_half(uint32_t word) {
    return static_cast<int16_t>(word & 0xffff);
}

inline int high_half(uint32_t word) {
    return static_cast<int16_t>(word >> 16);
}

inline uint32_t halves(int low, int high) {
    return (static_cast<uint32_t>(low) & 0xffff) | static_cast<uint32_t>(high) << 16;
}

void quantize_32(const float * row, int64_t first, int64_t last, uint32_t * panel, int nt, int token) {
    for (int64_t block = first; block < last; ++block) {
        const float * x = row + block * 32;
        uint32_t * out = panel + block * panel_32::words * nt + token;
        const uint32_t top = largest_bits(x, 32);
        const float magnitude = bits_float(top);
        __m256i codes = _mm256_setzero_si256();
        float scale = __builtin_nanf("");
        if (top < 0x7f800000u) {
            scale = 0;
            if (magnitude >= smallest) {
                scale = magnitude / 127.0f;
                codes = codes_32(x, _mm256_set1_ps(127.0f / magnitude));
            }
        }
        uint32_t words[8], sums[2];
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(words), codes);
        pair_sums(codes, sums);
        const int sum = low_half(sums[0]) + high_half(sums[0]) + low_half(sums[1]) + high_half(sums[1]);
        for (int i = 0; i < 8; ++i) {
            out[i * nt] = words[i];
        }
        out[panel_32::start_q4_0 * nt] = static_cast<uint32_t>(-8 * sum);
        out[panel_32::start_q8_0 * nt] = static_cast<uint32_t>(-128 * sum);
        out[panel_32::scale * nt] = float_bits(scale);
        out[panel_32::scaled_sum * nt] = float_bits(scale * static_cast<float>(sum));
    }
}

void quantize_256(const float * row, int64_t first, int64_t last, uint32_t * panel, int nt, int token) {
    for (int64_t block = first; block < last; ++block) {
        const float * x = row + block * 256;
        uint32_t * out = panel + block * panel_256::words * nt + token;
        const uint32_t top = largest_bits(x, 256);
        float scale = __builtin_nanf(""), inverse = 0;
        if (top < 0x7f800000u) {
            scale = 0;
            if (bits_float(top) >= smallest) {
                inverse = -127.0f / first_of(x, top);
                scale = 1.0f / inverse;
            }
        }
        __m256i largest = _mm256_setzero_si256();
        for (int s = 0; s < 8; ++s) {
            // A block without a scale, all zeros or not finite, has codes of zero.
            const __m256i codes =
                scale != 0 && scale == scale ? codes_32(x + 32 * s, _mm256_set1_ps(inverse)) : _mm256_setzero_si256();
            uint32_t words[8], sums[2];
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(words), codes);
            for (int i = 0; i < 8; ++i) {
                out[(8 * s + i) * nt] = words[i];
            }
            pair_sums(codes, sums);
            uint32_t * start = out + panel_256::start_q6_k * nt;
            const int one = low_half(sums[0]) + high_half(sums[0]), other = low_half(sums[1]) + high_half(sums[1]);
            if constexpr (Simd::any_bytes) {
                start[2 * s * nt] = static_cast<uint32_t>(-32 * one);
                start[(2 * s + 1) * nt] =
                    static_cast<uint32_t>(0x8000 - 32 * other);   // why from the middle: tiles_256.h
            } else {
                start[2 * s * nt] = halves(-32 * low_half(sums[0]), -32 * high_half(sums[0]));
                start[(2 * s + 1) * nt] = halves(-32 * low_half(sums[1]), -32 * high_half(sums[1]));
            }
            uint32_t & pair = out[(panel_256::sums + s / 2) * nt];
            pair = s % 2 ? pair | halves(one + other, 0) : halves(0, one + other);
            largest = _mm256_max_epi16(largest, magnitudes(codes));
        }
        out[panel_256::wide * nt] =
            _mm256_movemask_epi8(_mm256_cmpgt_epi16(largest, _mm256_set1_epi16(field_limit))) != 0;
        out[panel_256::scale * nt] = float_bits(scale);
    }
}

}  // namespace
}  // namespace pgl::kernels
