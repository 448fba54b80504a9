// MUL_MAT on AVX-VNNI: 8 rows to a vector, four byte products per lane in one instruction.
#include "kernels/matmul/simd256.h"

namespace pgl::kernels {
namespace {

struct Simd : Simd256 {
    using Part = I;
    using Bytes = I;
    static constexpr bool any_bytes = true;
    static constexpr int max_tokens = 4;
    static constexpr int wide_tokens = 2;  // 16 registers: two vectors of rows only with up to two tokens
    static constexpr bool halves_together = false;

    static Part begin(I acc) { return acc; }
    static Part dot(Part part, I w, I y) { return _mm256_dpbusd_avx_epi32(part, w, y); }
    static I end(I, Part part) { return part; }
    static Bytes bytes(I v) { return v; }
    static I dot_bytes(I acc, Bytes w, I y) { return _mm256_dpbusd_avx_epi32(acc, w, y); }
    static I dot_pairs(I acc, I a, I b) { return _mm256_dpwssd_avx_epi32(acc, a, b); }
};

}  // namespace
}  // namespace pgl::kernels

#include "kernels/matmul/quantize.h"
#include "kernels/matmul/tiles.h"

namespace pgl::kernels {

const Isa avxvnni = {"avx-vnni",
                     Simd::max_tokens,
                     1,
                     Simd::lanes,
                     quantize_32,
                     quantize_256,
                     {multiply<q4_0>, multiply<q4_1>, multiply<q8_0>, multiply<q4_k>, multiply<q5_k>, multiply<q6_k>}};

}  // namespace pgl::kernels
