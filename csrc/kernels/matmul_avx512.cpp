// MUL_MAT on AVX-512 with VNNI: 16 rows to a vector, 32 x 6 tiles.
#include <immintrin.h>

#include "isa.h"

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
    static constexpr bool biased_bytes = true;

    static I zero() { return _mm512_setzero_si512(); }
    static F zero_f() { return _mm512_setzero_ps(); }
    static I load(const uint8_t * p) { return _mm512_loadu_si512(p); }
    static void store(uint8_t * p, I v) { _mm512_store_si512(p, v); }
    static void store(float * p, F v) { _mm512_storeu_ps(p, v); }
    static void prefetch(const uint8_t * p) { _mm_prefetch(reinterpret_cast<const char *>(p), _MM_HINT_T1); }
    static I broadcast(uint32_t word) { return _mm512_set1_epi32(static_cast<int>(word)); }
    static F broadcast_f(float value) { return _mm512_set1_ps(value); }
    static I mask(I v, int bits) { return _mm512_and_si512(v, _mm512_set1_epi8(static_cast<char>(bits))); }
    static I either(I a, I b) { return _mm512_or_si512(a, b); }
    template <int n> static I shift(I v) {  // bits move between bytes: always masked after
        return n > 0 ? _mm512_slli_epi16(v, n > 0 ? n : 0) : n < 0 ? _mm512_srli_epi16(v, n < 0 ? -n : 0) : v;
    }
    static Part begin(I acc) { return acc; }
    static Part dot(Part part, I w, I y) { return _mm512_dpbusd_epi32(part, w, y); }
    static I end(I, Part part) { return part; }
    static Bytes bytes(I v) { return v; }
    static I dot_bytes(I acc, Bytes w, I y) { return _mm512_dpbusd_epi32(acc, w, y); }
    static I dot_pairs(I acc, I a, I b) { return _mm512_dpwssd_epi32(acc, a, b); }
    static I widen(const uint8_t * p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))); }
    static I widen_signed(const uint8_t * p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))); }
    static I high_half(I v) { return _mm512_slli_epi32(v, 16); }
    static F to_float(I v) { return _mm512_cvtepi32_ps(v); }
    static F half(const uint8_t * p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p))); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }
};

}  // namespace
}  // namespace pgl::kernels

#include "quantize.h"
#include "tiles.h"

namespace pgl::kernels {

const Isa avx512 = {"avx512-vnni", Simd::max_tokens, quantize_32, quantize_256,
                    {multiply<q4_0>, multiply<q4_1>, multiply<q8_0>, multiply<q4_k>, multiply<q5_k>, multiply<q6_k>}};

}  // namespace pgl::kernels
