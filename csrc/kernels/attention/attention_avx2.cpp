// Attention for AVX2: two ymm per 16 lanes, with the bits of the AVX-512 kernel.
#include <immintrin.h>

#include "kernels/attention/attention_isa.h"

namespace pgl::kernels {
namespace {

struct Vec {
    __m256 a, b;
};
constexpr int tile_rows = 6, tile_vecs = 1;  // 12 sums, 3 operands: 15 of 16 registers

inline Vec set1(float x) {
    return {_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
inline Vec load(const float * p) {
    return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
inline void store(float * p, Vec x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
inline Vec add(Vec x, Vec y) {
    return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
}
inline Vec sub(Vec x, Vec y) {
    return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)};
}
inline Vec mul(Vec x, Vec y) {
    return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
}
inline Vec fma(Vec x, Vec y, Vec z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
inline Vec max(Vec x, Vec y) {
    return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)};
}
inline __m256 lanes_of(int bits) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(bits), bit), bit));
}
inline Vec keep(uint16_t lanes, Vec x, Vec y) {
    return {_mm256_blendv_ps(y.a, x.a, lanes_of(lanes)), _mm256_blendv_ps(y.b, x.b, lanes_of(lanes >> 8))};
}
inline Vec zero_if_less(Vec x, Vec y, Vec limit) {
    return {_mm256_and_ps(x.a, _mm256_cmp_ps(y.a, limit.a, _CMP_NLT_UQ)),
            _mm256_and_ps(x.b, _mm256_cmp_ps(y.b, limit.b, _CMP_NLT_UQ))};
}
inline __m256 shift_to_exponent(__m256 a) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a), 23));
}
inline Vec exponent_bits(Vec x) {
    return {shift_to_exponent(x.a), shift_to_exponent(x.b)};
}
inline bool any_nan(Vec x) {
    return _mm256_movemask_ps(_mm256_cmp_ps(x.a, x.b, _CMP_UNORD_Q)) != 0;
}
inline Vec load_f16(const void * p) {
    const __m128i * half = static_cast<const __m128i *>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(half)), _mm256_cvtph_ps(_mm_loadu_si128(half + 1))};
}
inline Vec broadcast_f16(const void * p) {
    const __m256 x = _mm256_cvtph_ps(_mm_set1_epi16(*static_cast<const int16_t *>(p)));
    return {x, x};
}
inline Vec load_i8(const void * p) {
    const __m128i * half = static_cast<const __m128i *>(p);
    const __m128i x = _mm_loadu_si128(half);
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(x, x)))};
}
inline float fma1(float a, float b, float c) {
    return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
}
inline float reduce_add(Vec v) {
    const __m256 x = _mm256_add_ps(v.a, v.b);
    const __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 z = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(z, _mm_movehdup_ps(z)));
}
inline float reduce_max(Vec v) {
    const __m256 x = _mm256_max_ps(v.a, v.b);
    const __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 z = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(z, _mm_movehdup_ps(z)));
}

/// Bit c: cell c of 64 is not -inf.
inline uint64_t unmasked(const uint16_t * mask) {
    const __m256i nothing = _mm256_set1_epi16(static_cast<int16_t>(0xfc00));
    uint64_t bits = 0;
    for (int i = 0; i < 2; ++i) {
        const __m256i * p = reinterpret_cast<const __m256i *>(mask + 32 * i);
        const __m256i x = _mm256_cmpeq_epi16(_mm256_loadu_si256(p), nothing);
        const __m256i y = _mm256_cmpeq_epi16(_mm256_loadu_si256(p + 1), nothing);
        const __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi16(x, y), 0xd8);
        bits |= static_cast<uint64_t>(static_cast<uint32_t>(~_mm256_movemask_epi8(both))) << 32 * i;
    }
    return bits;
}

inline void transpose8(__m256 * m) {
    __m256 t[8];
    for (int i = 0; i < 8; i += 4) {  // 4 x 4 inside each 128-bit lane
        const __m256 a = _mm256_unpacklo_ps(m[i], m[i + 1]), b = _mm256_unpackhi_ps(m[i], m[i + 1]);
        const __m256 c = _mm256_unpacklo_ps(m[i + 2], m[i + 3]), d = _mm256_unpackhi_ps(m[i + 2], m[i + 3]);
        t[i] = _mm256_shuffle_ps(a, c, 0x44);
        t[i + 1] = _mm256_shuffle_ps(a, c, 0xee);
        t[i + 2] = _mm256_shuffle_ps(b, d, 0x44);
        t[i + 3] = _mm256_shuffle_ps(b, d, 0xee);
    }
    for (int i = 0; i < 4; ++i) {  // the lanes themselves
        m[i] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x20);
        m[i + 4] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x31);
    }
}
inline void transpose(Vec * m) {
    __m256 q[4][8];  // quarters: rows 0-7 low, rows 0-7 high, rows 8-15 low, rows 8-15 high
    for (int i = 0; i < 8; ++i) {
        q[0][i] = m[i].a;
        q[1][i] = m[i].b;
        q[2][i] = m[i + 8].a;
        q[3][i] = m[i + 8].b;
    }
    for (auto & quarter : q) {
        transpose8(quarter);
    }
    for (int i = 0; i < 8; ++i) {
        m[i] = {q[0][i], q[2][i]};
        m[i + 8] = {q[1][i], q[3][i]};
    }
}

inline Vec widen(__m256i x) {
    return {_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1))};
}
}  // namespace
}  // namespace pgl::kernels

// The body is written over `Vec` and what follows it here: its parts come in this order.
#include "kernels/attention/attention_f16.h"

#include "kernels/attention/attention_body.h"

namespace pgl::kernels {
const AttentionIsa attention_avx2 = {start, attend, fold, finish, valid_end};
}
