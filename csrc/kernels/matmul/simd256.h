// The 256-bit vectors that AVX2 and AVX-VNNI share: all of `Simd` but the dot products.
#pragma once

#include <immintrin.h>

#include "kernels/isa.h"

namespace pgl::kernels {
namespace {

struct Simd256 {
    using I = __m256i;
    using F = __m256;
    static constexpr int lanes = 8;

    static I zero() { return _mm256_setzero_si256(); }
    static F zero_f() { return _mm256_setzero_ps(); }
    static I load(const uint8_t * p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)); }
    static void store(float * p, F v) { _mm256_storeu_ps(p, v); }
    // Not inlined at once, GCC takes these for functions without effects and drops the calls.
    __attribute__((always_inline)) static void prefetch_near(const uint8_t * p) {
        _mm_prefetch(reinterpret_cast<const char *>(p), _MM_HINT_T0);
    }
    __attribute__((always_inline)) static void prefetch(const uint8_t * p) {
        _mm_prefetch(reinterpret_cast<const char *>(p), _MM_HINT_T1);
    }
    static I broadcast(uint32_t word) { return _mm256_set1_epi32(static_cast<int>(word)); }
    static F broadcast_f(float value) { return _mm256_set1_ps(value); }
    static I mask(I v, int bits) { return _mm256_and_si256(v, _mm256_set1_epi8(static_cast<char>(bits))); }
    static I mask_not(I v, int bits) { return _mm256_andnot_si256(_mm256_set1_epi8(static_cast<char>(bits)), v); }
    static I join(I a, I b) { return _mm256_or_si256(a, b); }
    template <int n> static I shift(I v) {
        return n > 0 ? _mm256_slli_epi16(v, n > 0 ? n : 0) : n < 0 ? _mm256_srli_epi16(v, n < 0 ? -n : 0) : v;
    }
    static I widen_pairs(const uint8_t * p) {
        return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    }
    static I widen_pairs_signed(const uint8_t * p) {
        return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    }
    static I high_half(I v) { return _mm256_slli_epi32(v, 16); }
    static I low_twice(I v) { return _mm256_blend_epi16(v, high_half(v), 0xaa); }
    static I high_twice(I v) { return _mm256_blend_epi16(_mm256_srli_epi32(v, 16), v, 0xaa); }
    static I sign_extend(I v) { return _mm256_srai_epi32(v, 16); }
    static I add(I a, I b) { return _mm256_add_epi32(a, b); }
    static I subtract(I a, I b) { return _mm256_sub_epi32(a, b); }
    static I mul_int(I a, I b) { return _mm256_mullo_epi32(a, b); }
    static I exclusive_or(I a, I b) { return _mm256_xor_si256(a, b); }
    static F to_float(I v) { return _mm256_cvtepi32_ps(v); }
    static F half(const uint8_t * p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))); }
    static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static F fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }
};

}  // namespace
}  // namespace pgl::kernels
