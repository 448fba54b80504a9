// MUL_MAT of one panel on one instruction set: which tile each pair of row groups gets. Ends the ISA files.
#pragma once

#include "kernels/matmul/tiles_256.h"
#include "kernels/matmul/tiles_32.h"

namespace pgl::kernels {
namespace {

template <Type T, int RG, int NT> void tile(const Tile & t) {
    if constexpr (block_formats[T].block == 32) {
        tile_32<T, RG, NT>(t);
    } else {
        tile_256<T, RG, NT>(t);
    }
}

template <Type T, int NT> void groups(const Multiply & task) {
    constexpr int wide = NT <= Simd::wide_tokens ? 2 : 1;
    constexpr int n_halves = Simd::halves_together ? 1 : group_rows / Simd::lanes;  // passes over a group
    const int64_t group_codes = task.n_blocks * block_formats[T].code_bytes;
    const int64_t group_scales = task.n_blocks * block_formats[T].scale_bytes;
    for (int64_t g = 0; g < task.n_groups;) {
        const bool two = Simd::halves_together || (wide == 2 && g + 2 <= task.n_groups);
        for (int half = 0; half < n_halves; ++half) {
            const int row = half * Simd::lanes;
            const Tile t = {task.codes + g * group_codes + 4 * row,
                            task.scales + g * group_scales,
                            group_codes,
                            group_scales,
                            row,
                            task.n_blocks,
                            task.panel,
                            task.out + g * group_rows + row,
                            task.out_stride,
                            {task.ahead[Simd::halves_together ? g % 2 : 0], task.ahead[1]},
                            task.cold};
            two ? tile<T, wide, NT>(t) : tile<T, 1, NT>(t);
        }
        g += two && !Simd::halves_together ? 2 : 1;
    }
}

template <Type T, int NT = Simd::max_tokens> void multiply(const Multiply & task) {
    if constexpr (NT > 1) {
        if (task.n_tokens[0] < NT) {
            return multiply<T, NT - 1>(task);
        }
    }
    groups<T, NT>(task);
}

}  // namespace
}  // namespace pgl::kernels
