// MUL_MAT on AVX2: 8 rows to a vector, bytes multiplied into 16-bit sums that are folded before they can overflow.
#include "kernels/matmul/simd256.h"

namespace pgl::kernels {
namespace {

struct Simd : Simd256 {
    using Part = I;
    struct Bytes {
        I magnitude, sign;
    };
    static constexpr bool any_bytes = false;  // 255 * 127 * 2 would saturate: sign and magnitude instead
    static constexpr int max_tokens = 6;
    static constexpr int wide_tokens = 6;
    static constexpr bool halves_together = true;  // the vectors of a tile are the two halves of one row group

    static I ones() { return _mm256_set1_epi16(1); }
    static Part begin(I) { return zero(); }
    /// A sum is added up in the order written. Otherwise GCC makes a tree of it: all products first, in memory.
    static I in_order(I sum) {
        __asm__("" : "+x"(sum));
        return sum;
    }
    static I add_pairs(I a, I b) { return _mm256_add_epi16(a, b); }
    static Part dot(Part part, I w, I y) { return in_order(_mm256_add_epi16(part, _mm256_maddubs_epi16(w, y))); }
    static I end(I acc, Part part) { return _mm256_add_epi32(acc, _mm256_madd_epi16(part, ones())); }
    static Bytes bytes(I v) {
        const I w = _mm256_xor_si256(v, _mm256_set1_epi8(static_cast<char>(0x80)));
        return {_mm256_abs_epi8(w), w};
    }
    static I dot_bytes(I acc, const Bytes & w, I y) {
        const I products = _mm256_maddubs_epi16(w.magnitude, _mm256_sign_epi8(y, w.sign));
        return in_order(_mm256_add_epi32(acc, _mm256_madd_epi16(products, ones())));
    }
    static I dot_pairs(I acc, I a, I b) { return in_order(_mm256_add_epi32(acc, _mm256_madd_epi16(a, b))); }
};

}  // namespace
}  // namespace pgl::kernels

#include "kernels/matmul/quantize.h"
#include "kernels/matmul/tiles.h"
#include "kernels/matmul/tiles_256_pairs.h"

namespace pgl::kernels {

const Isa avx2 = {
    "avx2",
    Simd::max_tokens,
    max_panels,
    Simd::lanes,
    quantize_32,
    quantize_256,
    {multiply<q4_0>, multiply<q4_1>, multiply<q8_0>, multiply_pairs<q4_k>, multiply_pairs<q5_k>, multiply_pairs<q6_k>}};

}  // namespace pgl::kernels
