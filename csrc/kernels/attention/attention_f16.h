// Transposing f16 before it is widened, at half the shuffles: for the x86 attention kernels, over their `widen`.

namespace pgl::kernels {
namespace {

/// 16 rows of 16 f16 at rows[i] to 16 rows of floats at to[j * stride], rows becoming columns.
inline void transpose_f16(const char * const * rows, float * to, int stride) {
    for (int half = 0; half < 2; ++half, to += 8 * stride) {
        __m256i m[8], t[8];
        for (int i = 0; i < 8; ++i) {  // rows i and i + 8 in the two 128-bit lanes
            const auto * low = reinterpret_cast<const __m128i *>(rows[i]) + half;
            const auto * high = reinterpret_cast<const __m128i *>(rows[i + 8]) + half;
            m[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(low)), _mm_loadu_si128(high), 1);
        }
        for (int i = 0; i < 4; ++i) {
            t[2 * i] = _mm256_unpacklo_epi16(m[i], m[i + 4]);
            t[2 * i + 1] = _mm256_unpackhi_epi16(m[i], m[i + 4]);
        }
        for (int i = 0; i < 4; ++i) {
            m[2 * i] = _mm256_unpacklo_epi16(t[i], t[i + 4]);
            m[2 * i + 1] = _mm256_unpackhi_epi16(t[i], t[i + 4]);
        }
        for (int i = 0; i < 4; ++i) {
            store(to + 2 * i * stride, widen(_mm256_unpacklo_epi16(m[i], m[i + 4])));
            store(to + (2 * i + 1) * stride, widen(_mm256_unpackhi_epi16(m[i], m[i + 4])));
        }
    }
}

}  // namespace
}  // namespace pgl::kernels
