// Attention for AVX-512: one zmm per 16 lanes.
#include <immintrin.h>

#include "kernels/attention/attention_isa.h"

namespace pgl::kernels {
namespace {

using Vec = __m512;
constexpr int tile_rows = 6, tile_vecs = 4;  // 24 sums, 4 operands: 28 of 32 registers

inline Vec set1(float x) {
    return _mm512_set1_ps(x);
}
inline Vec load(const float * p) {
    return _mm512_loadu_ps(p);
}
inline void store(float * p, Vec x) {
    _mm512_storeu_ps(p, x);
}
inline Vec add(Vec a, Vec b) {
    return _mm512_add_ps(a, b);
}
inline Vec sub(Vec a, Vec b) {
    return _mm512_sub_ps(a, b);
}
inline Vec mul(Vec a, Vec b) {
    return _mm512_mul_ps(a, b);
}
inline Vec fma(Vec a, Vec b, Vec c) {
    return _mm512_fmadd_ps(a, b, c);
}
inline Vec max(Vec a, Vec b) {
    return _mm512_max_ps(a, b);
}
inline Vec keep(uint16_t lanes, Vec a, Vec b) {
    return _mm512_mask_mov_ps(b, lanes, a);
}
inline Vec zero_if_less(Vec a, Vec x, Vec limit) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), a);
}
inline Vec exponent_bits(Vec a) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a), 23));
}
inline bool any_nan(Vec a) {
    return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q) != 0;
}
inline Vec load_f16(const void * p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i *>(p)));
}
inline Vec broadcast_f16(const void * p) {
    return _mm512_cvtph_ps(_mm256_set1_epi16(*static_cast<const int16_t *>(p)));
}
inline Vec load_i8(const void * p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i *>(p))));
}
inline float fma1(float a, float b, float c) {
    return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
}

inline __m256 halves(Vec a, bool high) {
    return high ? _mm512_extractf32x8_ps(a, 1) : _mm512_castps512_ps256(a);
}
inline float reduce_add(Vec a) {
    const __m256 x = _mm256_add_ps(halves(a, false), halves(a, true));
    const __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 z = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(z, _mm_movehdup_ps(z)));
}
inline float reduce_max(Vec a) {
    const __m256 x = _mm256_max_ps(halves(a, false), halves(a, true));
    const __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 z = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(z, _mm_movehdup_ps(z)));
}

/// Bit c: cell c of 64 is not -inf.
inline uint64_t unmasked(const uint16_t * mask) {
    const __m512i nothing = _mm512_set1_epi16(static_cast<int16_t>(0xfc00));
    const uint64_t low = _mm512_cmpneq_epi16_mask(_mm512_loadu_si512(mask), nothing);
    const uint64_t high = _mm512_cmpneq_epi16_mask(_mm512_loadu_si512(mask + 32), nothing);
    return high << 32 | low;
}

inline void transpose(Vec * m) {
    Vec t[16];
    for (int i = 0; i < 16; i += 4) {  // 4 x 4 inside each 128-bit lane
        const Vec a = _mm512_unpacklo_ps(m[i], m[i + 1]), b = _mm512_unpackhi_ps(m[i], m[i + 1]);
        const Vec c = _mm512_unpacklo_ps(m[i + 2], m[i + 3]), d = _mm512_unpackhi_ps(m[i + 2], m[i + 3]);
        t[i] = _mm512_shuffle_ps(a, c, 0x44);
        t[i + 1] = _mm512_shuffle_ps(a, c, 0xee);
        t[i + 2] = _mm512_shuffle_ps(b, d, 0x44);
        t[i + 3] = _mm512_shuffle_ps(b, d, 0xee);
    }
    for (int i = 0; i < 4; ++i) {  // the lanes themselves
        const Vec a = _mm512_shuffle_f32x4(t[i], t[i + 4], 0x88);
        const Vec b = _mm512_shuffle_f32x4(t[i], t[i + 4], 0xdd);
        const Vec c = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0x88);
        const Vec d = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0xdd);
        m[i] = _mm512_shuffle_f32x4(a, c, 0x88);
        m[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
        m[i + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
        m[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
}

inline Vec widen(__m256i halves16) {
    return _mm512_cvtph_ps(halves16);
}
}  // namespace
}  // namespace pgl::kernels

// The body is written over `Vec` and what follows it here: its parts come in this order.
#include "kernels/attention/attention_f16.h"

#include "kernels/attention/attention_body.h"

namespace pgl::kernels {
const AttentionIsa attention_avx512 = {start, attend, fold, finish, valid_end};
}
