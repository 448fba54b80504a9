// MUL_MAT of the types with super-blocks of 256 where bytes are multiplied into 16-bit sums (AVX2): tiles of the 16
// rows of a group, two vectors, by the tokens of a panel.
//
// The 16 registers go to the 16-bit sums; those of the super-block wait in memory, touched once per 4 or 8 products.
// With several panels the codes are unpacked once for all of them, into the first-level cache: the stores cost more
// than unpacking for one or two panels, and less than for more.
#pragma once

#include "kernels/matmul/tiles_256.h"

namespace pgl::kernels {
namespace {

constexpr int group_vectors = group_rows / Simd::lanes;

/// A super-block of a row group: what its panels share.
template <Type T> struct SuperBlock {
    static constexpr int n_subs = 64 / sub_operands<T>;
    const uint8_t * packed;
    I codes[64][group_vectors];  // one operand each, if they are unpacked
    I scales[n_subs][group_vectors];  // twice in every lane
    I mins[4][group_vectors];  // pairs, as six_bits gives them
    F d[group_vectors], dmin[group_vectors];
};

/// From how many tokens on unpacking once pays: Q5_K and Q6_K are dearer to unpack.
template <Type T> constexpr int many_tokens = T == q4_k ? 22 : 11;

/// Operands from operand o of sub-block s of a unit on, each vector of rows to its place.
template <Type T, int s = 0, int o = 0>
PGL_INLINE void unpack_unit(I (*codes)[group_vectors], const uint8_t * unit, int64_t ahead) {
    prefetch<T, s, o>(unit, ahead);
    PGL_UNROLL for (int h = 0; h < group_vectors; ++h) {
        codes[s * sub_operands<T> + o][h] = operand<T, s, o>(unit + 4 * Simd::lanes * h);
    }
    if constexpr (o + 1 < sub_operands<T>) {
        unpack_unit<T, s, o + 1>(codes, unit, ahead);
    } else if constexpr (s + 1 < unit_subs<T>) {
        unpack_unit<T, s + 1>(codes, unit, ahead);
    }
}

template <Type T> void unpack_codes(SuperBlock<T> & w, int64_t ahead) {
    for (int s = 0; s < w.n_subs; s += unit_subs<T>) {
        unpack_unit<T>(w.codes + s * sub_operands<T>, w.packed + s / unit_subs<T> * unit_bytes<T>, ahead);
    }
}

template <Type T> PGL_INLINE void unpack_scales(SuperBlock<T> & w, const uint8_t * scales) {
    PGL_UNROLL for (int h = 0; h < group_vectors; ++h) {
        const int row = h * Simd::lanes;
        PGL_UNROLL for (int p = 0; p < w.n_subs / 2; ++p) {
            const I pair = scale_pair<T>(scales, p, row);
            w.scales[2 * p][h] = Simd::high_twice(pair);
            w.scales[2 * p + 1][h] = Simd::low_twice(pair);
        }
        w.d[h] = Simd::half(scales + 2 * row);
        if constexpr (T != q6_k) {
            w.dmin[h] = Simd::half(scales + 32 + 2 * row);
            PGL_UNROLL for (int p = 0; p < 4; ++p) {
                w.mins[p][h] = six_bits<true>(scales, p, row);
            }
        }
    }
}

/// A sub-block of a super-block: its operands, packed or unpacked, and what of a panel belongs to it.
struct SubBlock {
    const uint8_t * packed;  // the unit it lies in, as operand() takes it
    const uint8_t * next;  // whose vectors are prefetched meanwhile
    const I (*codes)[group_vectors];
    const I (*scale)[group_vectors];
    const uint32_t * y;
    const uint32_t * start;
};

/// Adds operands [o, end) to the dot products. The panel is `width` tokens wide; `s` is the number in the unit.
template <Type T, bool unpacked, int width, int s, int o, int end, int NT>
PGL_INLINE void pair_dots(I (&part)[group_vectors][NT], const SubBlock & sub) {
    if constexpr (o < end) {
        I w[group_vectors];
        if constexpr (!unpacked) {
            prefetch<T, s, o>(sub.next, 0);
        }
        PGL_UNROLL for (int h = 0; h < group_vectors; ++h) {
            if constexpr (unpacked) {
                w[h] = sub.codes[o][h];
            } else {
                w[h] = operand<T, s, o>(sub.packed + 4 * Simd::lanes * h);
            }
        }
        PGL_UNROLL for (int j = 0; j < NT; ++j) {
            const I a = Simd::broadcast(sub.y[o * width + j]);
            PGL_UNROLL for (int h = 0; h < group_vectors; ++h) {
                part[h][j] = Simd::dot(part[h][j], w[h], a);
            }
        }
        pair_dots<T, unpacked, width, s, o + 1, end>(part, sub);
    }
}

/// Fields (tiles_256.h) of a sub-block from operand o on, scaled and added to `sum`. Q6_K's do not fit 16 bits as they
/// are; without the bias, which the start takes out, they do, and what overflows on the way comes back.
template <Type T, bool unpacked, int width, int s, int o = 0, int NT>
PGL_INLINE void sub_block(I (&sum)[group_vectors][NT], const SubBlock & sub) {
    I part[group_vectors][NT];
    PGL_UNROLL for (int j = 0; j < NT; ++j) {
        const I start = T == q6_k ? Simd::broadcast(sub.start[j]) : Simd::zero();
        PGL_UNROLL for (int h = 0; h < group_vectors; ++h) {
            part[h][j] = start;
        }
    }
    constexpr int end = o + field_operands<T>;
    pair_dots<T, unpacked, width, s, o, end>(part, sub);
    constexpr int others = T == q5_k && !unpacked ? 6 : 4;  // registers for an operand and its making
    constexpr bool in_registers = 2 * group_vectors * NT + others <= 16;
    PGL_UNROLL for (int h = 0; h < group_vectors; ++h) {
        PGL_UNROLL for (int j = 0; j < NT; ++j) {
            sum[h][j] = Simd::dot_pairs(sum[h][j], part[h][j], (*sub.scale)[h]);
            if constexpr (!in_registers) {
                __asm__("" : "+m"(sum[h][j]));
            }
        }
    }
    if constexpr (end < sub_operands<T>) {
        sub_block<T, unpacked, width, s, end>(sum, sub);
    }
}

/// Adds a super-block to the totals of NT tokens of a panel `width` wide; y is the first one's word 0.
template <Type T, bool unpacked, int width, int NT>
PGL_INLINE void some_tokens(F (*total)[group_vectors], const SuperBlock<T> & w, const uint32_t * y, int64_t ahead) {
    I sum[group_vectors][NT];
    fill(sum, Simd::zero());
    // Of a unit of Q6_K the last sub-block is scattered over the vectors of the others, which are alike. (All written
    // out would be too much code for the micro-op cache.)
    constexpr int scattered = !unpacked && unit_subs<T> > 1 ? 1 : 0;
    constexpr int alike = unpacked ? 1 : unit_subs<T> - scattered;
    SubBlock sub = {nullptr, nullptr, w.codes, w.scales, y, y + panel_256::start_q6_k * width};
    const auto advance = [&] {
        sub.codes += sub_operands<T>;
        sub.scale += 1;
        sub.y += sub_operands<T> * width;
        sub.start += width;
    };
    const uint8_t * unit = w.packed;
    for (int n = 0; n < w.n_subs; n += alike + scattered, unit += unit_bytes<T>) {
#pragma GCC unroll 1
        for (int s = 0; s < alike; ++s, advance()) {
            sub.packed = unit + unit_bytes<T> / alike * s;
            sub.next = unit + unit_bytes<T> / unit_subs<T> * s + ahead;
            sub_block<T, unpacked, width, 0>(sum, sub);
        }
        if constexpr (scattered > 0) {
            sub.packed = unit;
            sub.next = unit + ahead;
            sub_block<T, unpacked, width, unit_subs<T> - 1>(sum, sub);
            advance();
        }
    }
    PGL_UNROLL for (int h = 0; h < group_vectors; ++h) {
        F scaled[NT];
        __asm__("" : "+r"(y));  // broadcast again for every vector of rows
        PGL_UNROLL for (int j = 0; j < NT; ++j) {
            scaled[j] = Simd::mul(Simd::to_float(sum[h][j]), w.d[h]);
        }
        if constexpr (T != q6_k) {
            I mins[NT];
            PGL_UNROLL for (int j = 0; j < NT; ++j) {
                mins[j] = Simd::zero();
            }
            PGL_UNROLL for (int p = 0; p < 4; ++p) {
                PGL_UNROLL for (int j = 0; j < NT; ++j) {
                    const I sums = Simd::broadcast(y[(panel_256::sums + p) * width + j]);
                    mins[j] = Simd::dot_pairs(mins[j], w.mins[p][h], sums);
                }
            }
            PGL_UNROLL for (int j = 0; j < NT; ++j) {
                scaled[j] = Simd::fnma(w.dmin[h], Simd::to_float(mins[j]), scaled[j]);
            }
        }
        PGL_UNROLL for (int j = 0; j < NT; ++j) {
            total[j][h] =
                Simd::fma(scaled[j], Simd::broadcast_f(as_float(y[panel_256::scale * width + j])), total[j][h]);
        }
    }
}

/// Adds a super-block to the totals of a panel of NT tokens. Unpacked, three tokens at a time: then both kinds of sums
/// fit the registers.
template <Type T, bool unpacked, int NT>
void super_block(F (*total)[group_vectors], const SuperBlock<T> & w, const uint32_t * y, int64_t ahead) {
    if constexpr (unpacked && NT > 3) {
        some_tokens<T, unpacked, NT, NT / 2>(total, w, y, ahead);
        some_tokens<T, unpacked, NT, NT - NT / 2>(total + NT / 2, w, y + NT / 2, ahead);
    } else {
        some_tokens<T, unpacked, NT, NT>(total, w, y, ahead);
    }
}

template <Type T>
using SuperBlockTile = void (*)(F (*)[group_vectors], const SuperBlock<T> &, const uint32_t *, int64_t);

template <Type T, bool unpacked, int NT = Simd::max_tokens> SuperBlockTile<T> super_block_of(int n_tokens) {
    if constexpr (NT > 1) {
        if (n_tokens < NT) {
            return super_block_of<T, unpacked, NT - 1>(n_tokens);
        }
    }
    return super_block<T, unpacked, NT>;
}

template <Type T> void multiply_pairs(const Multiply & task) {
    constexpr BlockFormat format = block_formats[T];
    int first_token[max_panels + 1] = {0};
    for (int p = 0; p < task.n_panels; ++p) {
        first_token[p + 1] = first_token[p] + task.n_tokens[p];
    }
    const int n_tokens = first_token[task.n_panels];
    const bool unpacked = n_tokens >= many_tokens<T>;
    SuperBlockTile<T> tiles[max_panels];
    const uint32_t * panels[max_panels];
    const uint32_t * panel = task.panel;
    for (int p = 0; p < task.n_panels; ++p) {
        const int nt = task.n_tokens[p];
        tiles[p] = unpacked ? super_block_of<T, true>(nt) : super_block_of<T, false>(nt);
        panels[p] = panel;
        panel += task.n_blocks * panel_256::words * nt;
    }
    SuperBlock<T> w;
    w.packed = task.codes;
    const uint8_t * scales = task.scales;
    for (int64_t g = 0; g < task.n_groups; ++g) {
        const int64_t ahead = task.ahead[g % 2];
        F total[max_panels * Simd::max_tokens][group_vectors];
        for (int j = 0; j < n_tokens; ++j) {
            for (int h = 0; h < group_vectors; ++h) {
                total[j][h] = Simd::zero_f();
            }
        }
        for (int64_t b = 0; b < task.n_blocks; ++b, w.packed += format.code_bytes, scales += format.scale_bytes) {
            prefetch_scales<T>(scales, ahead, task.cold);
            unpack_scales<T>(w, scales);
            if (unpacked) {
                unpack_codes<T>(w, ahead);
            }
            for (int p = 0; p < task.n_panels; ++p) {
                tiles[p](total + first_token[p], w, panels[p] + b * panel_256::words * task.n_tokens[p], ahead);
            }
        }
        for (int j = 0; j < n_tokens; ++j) {
            for (int h = 0; h < group_vectors; ++h) {
                Simd::store(task.out + j * task.out_stride + g * group_rows + h * Simd::lanes, total[j][h]);
            }
        }
    }
}

}  // namespace
}  // namespace pgl::kernels
