// What the register tiles of MUL_MAT have in common. They are written once over a `Simd` that each ISA file defines
// first. Everything here has internal linkage: no instruction of one ISA can end up in another's function.
//
// A tile is RG vectors of weight rows by NT tokens. Weights are the unsigned operand, 4 k of `lanes` rows per vector;
// activations are broadcast, 4 k of one token. Per block: exact integer sums, then a fixed order of f32 steps, the same
// in every tile shape, so that a row's bits do not depend on its neighbours.
#pragma once

#include "kernels/isa.h"
#include "kernels/matmul/layout.h"

namespace pgl::kernels {
namespace {

using I = Simd::I;
using F = Simd::F;

#define PGL_UNROLL _Pragma("GCC unroll 16")
#define PGL_INLINE __attribute__((always_inline)) inline  // accumulators passed by reference must end up in registers

struct Tile {
    const uint8_t * codes;  // of this tile's first vector of rows
    const uint8_t * scales;  // of its group
    int64_t group_codes;  // bytes from group to group
    int64_t group_scales;
    int row;  // first row inside the group: 0, or 8 for the second half with 8 lanes
    int64_t n_blocks;
    const uint32_t * panel;
    float * out;
    int64_t out_stride;
    int64_t ahead[2];
    bool cold;

    /// From one vector of rows to the next: in the codes, the scales and the rows.
    int64_t codes_stride() const { return Simd::halves_together ? 4 * Simd::lanes : group_codes; }
    int64_t scales_stride() const { return Simd::halves_together ? 2 * Simd::lanes : group_scales; }
    static constexpr int rows_stride = Simd::halves_together ? Simd::lanes : group_rows;
};

inline float as_float(uint32_t word) {
    float value;
    __builtin_memcpy(&value, &word, 4);
    return value;
}

template <typename V, int RG, int NT> PGL_INLINE void fill(V (&tile)[RG][NT], V value) {
    PGL_UNROLL for (int g = 0; g < RG; ++g) {
        PGL_UNROLL for (int j = 0; j < NT; ++j) {
            tile[g][j] = value;
        }
    }
}

template <int RG, int NT> inline void store_tile(const Tile & t, const F (&total)[RG][NT]) {
    PGL_UNROLL for (int g = 0; g < RG; ++g) {
        PGL_UNROLL for (int j = 0; j < NT; ++j) {
            Simd::store(t.out + j * t.out_stride + g * Tile::rows_stride, total[g][j]);
        }
    }
}

}  // namespace
}  // namespace pgl::kernels
