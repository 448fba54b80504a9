// MUL_MAT on AVX-512 with VNNI: 16 rows to a vector, 32 x 6 tiles.
#include <immintrin.h>

#include "kernels/isa.h"

namespace pgl::kernels {
namespace {

struct Simd {
    using I = __m512i;
    using F = __m512;
    using Part = I;
    using Bytes = I;
    static constexpr int lanes = 16;
    static constexpr int max_tokens = 6;
    static constexpr int wide_tokens = 6;  // two row groups at once up to here: 24 accumulators of 32 registers
    static constexpr bool halves_together = false;
    static constexpr bool any_bytes = true;  // a product takes every unsigned byte, without saturation

    static I zero() { return _mm512_setzero_si512(); }
    static F zero_f() { return _mm512_setzero_ps(); }
    static I load(const uint8_t * p) { return _mm512_loadu_si512(p); }
    static void store(float * p, F v) { _mm512_storeu_ps(p, v); }
    // Not inlined at once, GCC takes these for functions without effects and drops the calls.
    __attribute__((always_inline)) static void prefetch_near(const uint8_t * p) {
        _mm_prefetch(reinterpret_cast<const char *>(p), _MM_HINT_T0);
    }
    __attribute__((always_inline)) static void prefetch(const uint8_t * p) {
        _mm_prefetch(reinterpret_cast<const char *>(p), _MM_HINT_T1);
    }
    static I broadcast(uint32_t word) { return _mm512_set1_epi32(static_cast<int>(word)); }
    static F broadcast_f(float value) { return _mm512_set1_ps(value); }
    static I mask(I v, int bits) { return _mm512_and_si512(v, _mm512_set1_epi8(static_cast<char>(bits))); }
    static I mask_not(I v, int bits) { return _mm512_andnot_si512(_mm512_set1_epi8(static_cast<char>(bits)), v); }
    static I join(I a, I b) {
        return _mm512_add_epi8(a, b);
    }  // of disjoint bits; an `or` would become a vpternlog, which is slower
    template <int n> static I shift(I v) {  // bits may move between bytes
        return n > 0 ? _mm512_slli_epi16(v, n > 0 ? n : 0) : n < 0 ? _mm512_srli_epi16(v, n < 0 ? -n : 0) : v;
    }
    static Part begin(I acc) { return acc; }
    static Part dot(Part part, I w, I y) { return _mm512_dpbusd_epi32(part, w, y); }
    static I end(I, Part part) { return part; }
    static Bytes bytes(I v) { return v; }
    static I dot_bytes(I acc, Bytes w, I y) { return _mm512_dpbusd_epi32(acc, w, y); }
    static I dot_pairs(I acc, I a, I b) { return _mm512_dpwssd_epi32(acc, a, b); }
    static I widen_pairs(const uint8_t * p) {
        return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    }
    static I widen_pairs_signed(const uint8_t * p) {
        return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    }
    static I high_half(I v) { return _mm512_slli_epi32(v, 16); }
    static I low_twice(I v) { return _mm512_mask_blend_epi16(0xaaaaaaaa, v, high_half(v)); }
    static I high_twice(I v) { return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(v, 16), v); }
    static I sign_extend(I v) { return _mm512_srai_epi32(v, 16); }   // of the upper half
    static I add(I a, I b) { return _mm512_add_epi32(a, b); }
    static I subtract(I a, I b) { return _mm512_sub_epi32(a, b); }
    static I mul_int(I a, I b) { return _mm512_mullo_epi32(a, b); }
    static I exclusive_or(I a, I b) { return _mm512_xor_si512(a, b); }
    static F to_float(I v) { return _mm512_cvtepi32_ps(v); }
    static F half(const uint8_t * p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }
};

}  // namespace
}  // namespace pgl::kernels

#include "kernels/matmul/quantize.h"
#include "kernels/matmul/tiles.h"

namespace pgl::kernels {

const Isa avx512 = {"avx512-vnni",
                    Simd::max_tokens,
                    1,
                    Simd::lanes,
                    quantize_32,
                    quantize_256,
                    {multiply<q4_0>, multiply<q4_1>, multiply<q8_0>, multiply<q4_k>, multiply<q5_k>, multiply<q6_k>}};

}  // namespace pgl::kernels
