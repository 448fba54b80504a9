// Attention in plain C++, the reference for the others: 16 lanes as an array, with the bits of the SIMD kernels.
#include <string.h>

#include "kernels/attention/attention_isa.h"

namespace pgl::kernels {
namespace {

struct Vec {
    float x[16];
};
constexpr int tile_rows = 1, tile_vecs = 1;

template <typename Lane> inline Vec lanes(Lane lane) {
    Vec y;
    for (int i = 0; i < 16; ++i) {
        y.x[i] = lane(i);
    }
    return y;
}
inline float greater(float a, float b) {
    return a > b ? a : b;
}  // b if unordered, as the SIMD instruction
inline float half_to_float(const void * p) {
    uint16_t h;
    memcpy(&h, p, sizeof(h));
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
    if (exponent == 0) {  // 0 and subnormals: fraction * 2^-24, exact
        const float x = static_cast<float>(fraction) * 5.9604644775390625e-8f;
        return sign ? -x : x;
    }
    const uint32_t bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

inline Vec set1(float a) {
    return lanes([=](int) { return a; });
}
inline Vec load(const float * p) {
    return lanes([=](int i) { return p[i]; });
}
inline void store(float * p, const Vec & a) {
    memcpy(p, a.x, sizeof(a.x));
}
inline float fma1(float a, float b, float c) {
    return __builtin_fmaf(a, b, c);
}
inline Vec add(const Vec & a, const Vec & b) {
    return lanes([&](int i) { return a.x[i] + b.x[i]; });
}
inline Vec sub(const Vec & a, const Vec & b) {
    return lanes([&](int i) { return a.x[i] - b.x[i]; });
}
inline Vec mul(const Vec & a, const Vec & b) {
    return lanes([&](int i) { return a.x[i] * b.x[i]; });
}
inline Vec fma(const Vec & a, const Vec & b, const Vec & c) {
    return lanes([&](int i) { return fma1(a.x[i], b.x[i], c.x[i]); });
}
inline Vec max(const Vec & a, const Vec & b) {
    return lanes([&](int i) { return greater(a.x[i], b.x[i]); });
}
inline Vec keep(uint16_t bits, const Vec & a, const Vec & b) {
    return lanes([&](int i) { return bits >> i & 1 ? a.x[i] : b.x[i]; });
}
inline Vec zero_if_less(const Vec & a, const Vec & x, const Vec & limit) {
    return lanes([&](int i) { return x.x[i] < limit.x[i] ? 0.0f : a.x[i]; });
}
inline Vec exponent_bits(const Vec & a) {
    Vec y;
    for (int i = 0; i < 16; ++i) {
        uint32_t bits;
        memcpy(&bits, &a.x[i], sizeof(bits));
        bits <<= 23;
        memcpy(&y.x[i], &bits, sizeof(bits));
    }
    return y;
}
inline bool any_nan(const Vec & a) {
    bool any = false;
    for (const float x : a.x) {
        any = any || x != x;
    }
    return any;
}
inline Vec load_f16(const void * p) {
    return lanes([=](int i) { return half_to_float(static_cast<const char *>(p) + 2 * i); });
}
inline Vec broadcast_f16(const void * p) {
    return set1(half_to_float(p));
}
inline Vec load_i8(const void * p) {
    return lanes([=](int i) { return static_cast<float>(static_cast<const int8_t *>(p)[i]); });
}
template <typename Op> inline float reduce(Vec a, Op op) {
    for (int n = 8; n > 0; n /= 2) {
        for (int i = 0; i < n; ++i) {
            a.x[i] = op(a.x[i], a.x[i + n]);
        }
    }
    return a.x[0];
}
inline float reduce_add(const Vec & a) {
    return reduce(a, [](float x, float y) { return x + y; });
}
inline float reduce_max(const Vec & a) {
    return reduce(a, greater);
}

/// Bit c: cell c of 64 is not -inf.
inline uint64_t unmasked(const uint16_t * mask) {
    uint64_t bits = 0;
    for (int c = 0; c < 64; ++c) {
        bits |= static_cast<uint64_t>(mask[c] != 0xfc00) << c;
    }
    return bits;
}

inline void transpose(Vec * m) {
    for (int i = 0; i < 16; ++i) {
        for (int j = 0; j < i; ++j) {
            const float x = m[i].x[j];
            m[i].x[j] = m[j].x[i];
            m[j].x[i] = x;
        }
    }
}

/// 16 rows of 16 f16 at rows[i] to 16 rows of floats at to[j * stride], rows becoming columns.
inline void transpose_f16(const char * const * rows, float * to, int stride) {
    for (int i = 0; i < 16; ++i) {
        for (int j = 0; j < 16; ++j) {
            to[j * stride + i] = half_to_float(rows[i] + 2 * j);
        }
    }
}

}  // namespace
}  // namespace pgl::kernels

#include "kernels/attention/attention_body.h"

namespace pgl::kernels {
const AttentionIsa attention_scalar = {start, attend, fold, finish, valid_end};
}
