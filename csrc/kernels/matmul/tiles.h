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
    const int64_t codes_stride = task.n_blocks * block_formats[T].code_bytes;
    const int64_t scales_stride = task.n_blocks * block_formats[T].scale_bytes;
    for (int64_t g = 0; g < task.n_groups;) {
        const bool two = wide == 2 && g + 2 <= task.n_groups;
        for (int row = 0; row < group_rows; row += Simd::lanes) {
            const Tile t = {task.codes + g * codes_stride + 4 * row,
                            task.scales + g * scales_stride,
                            codes_stride,
                            scales_stride,
                            row,
                            task.n_blocks,
                            task.panel,
                            task.out + g * group_rows + row,
                            task.out_stride,
                            {task.ahead[0], task.ahead[1]},
                            task.cold};
            two ? tile<T, wide, NT>(t) : tile<T, 1, NT>(t);
        }
        g += two ? 2 : 1;
    }
}

template <Type T, int NT = Simd::max_tokens> void multiply(const Multiply & task) {
    if constexpr (NT > 1) {
        if (task.n_tokens < NT) {
            return multiply<T, NT - 1>(task);
        }
    }
    groups<T, NT>(task);
}

#undef PGL_INLINE
#undef PGL_UNROLL

}  // namespace
}  // namespace pgl::kernels
