// Tiles of the types with super-blocks of 256: Q4_K, Q5_K, Q6_K.
//
// The sums of a super-block, scaled by small integers, are integers: exact, whatever the order. Scaling them one by one
// in f32 would cost a multiplication per sub-block on the very units that make the dot products; here two share one.
// The compiler is held back in places (empty `asm`): what it would keep in registers to save a load costs a spilled
// sum.
#pragma once

#include "kernels/matmul/tile.h"

namespace pgl::kernels {
namespace {

/// The six-bit scales (`min` = false) or mins of sub-blocks 2p (upper half) and 2p + 1: pairs of int16, one per row.
template <bool min> inline I six_bits(const uint8_t * s, int p, int row) {
    const I low = Simd::widen_pairs(s + 64 + 32 * p + 2 * row);
    const I both = Simd::widen_pairs(s + 192 + 32 * (p % 2) + 2 * row);
    const I high = p < 2 ? both : Simd::template shift<-4>(both);
    return Simd::join(Simd::mask(min ? Simd::template shift<-4>(low) : low, 0x0f),
                      Simd::mask(Simd::template shift<min ? 2 : 4>(high), 0x30));
}

/// A field is a run of k whose sum fits 16 bits (unless its block is wide, see quantize.h): a sub-block, of Q5_K
/// half of one. Two fields share a multiplication: their sums meet in the halves of a 32-bit lane, as their scales do.
template <Type T> constexpr int field_operands = T == q4_k ? 8 : 4;
template <Type T> constexpr int sub_operands = T == q6_k ? 4 : 8;
/// Sub-blocks whose codes lie in the same vectors (layout.h).
template <Type T> constexpr int unit_subs = T == q6_k ? 4 : 1;
template <Type T> constexpr int unit_bytes = block_formats[T].code_bytes * unit_subs<T> * sub_operands<T> / 64;

/// Operand o (4 k of every row) of sub-block s of a unit.
template <Type T, int s, int o> inline I operand(const uint8_t * unit) {
    if constexpr (T != q6_k) {
        const I low = Simd::mask(Simd::template shift<o % 2 ? -4 : 0>(Simd::load(unit + 64 * (o / 2))), 0x0f);
        return T == q4_k ? low
                         : Simd::join(low, Simd::mask(Simd::template shift<4 - o>(Simd::load(unit + 64 * 4)), 0x10));
    } else if constexpr (s < 3) {
        return Simd::mask(Simd::load(unit + 64 * (4 * s + o)), 0x3f);
    } else {
        const auto top = [unit](int vector) { return Simd::mask_not(Simd::load(unit + 64 * vector), 0x3f); };
        const I low = Simd::join(Simd::template shift<-2>(top(8 + o)), top(4 + o));
        return Simd::template shift<-2>(Simd::join(Simd::template shift<-2>(low), top(o)));
    }
}

/// Prefetches the vectors, `ahead` bytes further on, that a later operand o is made of; every vector once.
template <Type T, int s, int o> PGL_INLINE void prefetch(const uint8_t * unit, int64_t ahead) {
    // In the order of memory, at an even rate: Q6_K's three vectors per sub-block too.
    if constexpr (T == q6_k ? o < 3 : o % 2 == 0) {
        Simd::prefetch(unit + 64 * (T == q6_k ? 3 * s + o : o / 2) + ahead);
    }
    if constexpr (T == q5_k && o == 7) {
        Simd::prefetch(unit + 64 * 4 + ahead);
    }
}

/// Adds operands [o, end) of a sub-block to the dot products.
template <Type T, int s, int o, int end, int RG, int NT>
PGL_INLINE void dots(Simd::Part (&part)[RG][NT], const Tile & t, const uint8_t * unit, const uint32_t * y) {
    if constexpr (o < end) {
        I w[RG];
        PGL_UNROLL for (int g = 0; g < RG; ++g) {
            prefetch<T, s, o>(unit + g * t.codes_stride(), t.ahead[g]);
            w[g] = operand<T, s, o>(unit + g * t.codes_stride());
        }
        PGL_UNROLL for (int j = 0; j < NT; ++j) {
            const I a = Simd::broadcast(y[o * NT + j]);
            PGL_UNROLL for (int g = 0; g < RG; ++g) {
                part[g][j] = Simd::dot(part[g][j], w[g], a);
            }
        }
        dots<T, s, o + 1, end>(part, t, unit, y);
    }
}

/// The scales of sub-blocks 2p (upper half) and 2p + 1: pairs of int16, one per row.
template <Type T> inline I scale_pair(const uint8_t * s, int p, int row) {
    if constexpr (T == q6_k) {
        return Simd::widen_pairs_signed(s + 32 + 32 * p + 2 * row);
    } else {
        return six_bits<false>(s, p, row);
    }
}

/// What sub-block s starts from: Q6_K's codes carry a bias, the others none.
template <Type T> inline I start_of(const uint32_t * y, int nt, int s, int token) {
    return T == q6_k ? Simd::broadcast(y[(panel_256::start_q6_k + s) * nt + token]) : Simd::zero();
}

/// The middle of 16 bits in every lane. Made anew where it is used: as a constant it would hold a register all along.
PGL_INLINE I middle() {
    uint32_t word = 0x8000;
    __asm__("" : "+r"(word));
    return Simd::broadcast(word);
}

/// Where a field is: the unit it lies in, the activations and the number of its sub-block.
struct Field {
    const uint8_t * unit;
    const uint32_t * y;
    int sub;
};

/// Two fields, operands o0 and up of sub-block s0 of their unit, o1 and s1, scaled and added to `sum`: exact integers.
template <Type T, int s0, int o0, int s1, int o1, int RG, int NT>
PGL_INLINE void fields(I (&sum)[RG][NT], const Tile & t, const uint8_t * scales, Field first, Field second,
                       const uint32_t * y) {
    const auto scale_of = [&](int g) {  // late: two registers less while the products are made
        const I pair = scale_pair<T>(scales + g * t.scales_stride(), first.sub / 2, t.row);
        return first.sub != second.sub ? pair : first.sub % 2 ? Simd::low_twice(pair) : Simd::high_twice(pair);
    };
    constexpr int n = field_operands<T>;
    Simd::Part part[RG][NT];
    const auto begin = [&](int sub) {
        PGL_UNROLL for (int j = 0; j < NT; ++j) {
            const I start = start_of<T>(y, NT, sub, j);
            PGL_UNROLL for (int g = 0; g < RG; ++g) {
                part[g][j] = start;
            }
        }
    };
    begin(first.sub);
    dots<T, s0, o0, o0 + n>(part, t, first.unit, first.y);
    // To the upper half with it. The other field counts from the middle of the lower half (Q6_K's starts include
    // that), so that it never borrows from above.
    __asm__ volatile("" : "+r"(y));
    const I plain = middle();
    PGL_UNROLL for (int j = 0; j < NT; ++j) {
        const I start = T == q6_k ? start_of<T>(y, NT, second.sub, j) : plain;
        PGL_UNROLL for (int g = 0; g < RG; ++g) {
            part[g][j] = Simd::add(Simd::high_half(part[g][j]), start);
        }
    }
    if constexpr (unit_subs<T> > 1) {
        __asm__("" : "+r"(second.unit));  // shared vectors are read again
    }
    dots<T, s1, o1, o1 + n>(part, t, second.unit, second.y);
    const I offset = middle();
    __asm__("" : "+r"(scales));
    PGL_UNROLL for (int g = 0; g < RG; ++g) {
        const I scale = scale_of(g);
        PGL_UNROLL for (int j = 0; j < NT; ++j) {
            sum[g][j] = Simd::dot_pairs(sum[g][j], Simd::exclusive_or(part[g][j], offset), scale);
        }
    }
}

/// Sub-blocks 2p and 2p + 1, in the order of memory: any other makes the hardware's prefetcher lose the track (a third
/// slower with one token). `even_p` tells whether p is even.
template <Type T, bool even_p, int RG, int NT>
PGL_INLINE void sub_blocks(I (&sum)[RG][NT], const Tile & t, const uint8_t * codes, const uint8_t * scales,
                           const uint32_t * y, int p) {
    constexpr bool alone = unit_subs<T> == 1;
    constexpr int s0 = alone || even_p ? 0 : 2, s1 = alone ? 0 : s0 + 1;
    const uint8_t * unit = codes + 2 * p / unit_subs<T> * unit_bytes<T>;
    const Field first = {unit, y + 2 * p * sub_operands<T> * NT, 2 * p};
    const Field second = {alone ? unit + unit_bytes<T> : unit, first.y + sub_operands<T> * NT, 2 * p + 1};
    if constexpr (field_operands<T> == sub_operands<T>) {
        fields<T, s0, 0, s1, 0>(sum, t, scales, first, second, y);
    } else {
        fields<T, s0, 0, s0, field_operands<T>>(sum, t, scales, first, first, y);
        fields<T, s1, 0, s1, field_operands<T>>(sum, t, scales, second, second, y);
    }
}

/// Sub-blocks s and up of a unit, the first of which is number `first` of the super-block; their fields may be wide.
template <Type T, int s, int RG, int NT>
PGL_INLINE void wide_unit(I (&sum)[RG][NT], const Tile & t, const uint8_t * unit, const uint8_t * scales,
                          const uint32_t * y, int first) {
    I part[RG][NT];
    PGL_UNROLL for (int j = 0; j < NT; ++j) {
        I start = start_of<T>(y, NT, first + s, j);
        if (T == q6_k && s % 2 == 1) {
            start = Simd::subtract(start, middle());
        }
        PGL_UNROLL for (int g = 0; g < RG; ++g) {
            part[g][j] = start;
        }
    }
    dots<T, s, 0, sub_operands<T>>(part, t, unit, y + (first + s) * sub_operands<T> * NT);
    PGL_UNROLL for (int g = 0; g < RG; ++g) {
        const I pair = scale_pair<T>(scales + g * t.scales_stride(), (first + s) / 2, t.row);
        const I scale = Simd::sign_extend((first + s) % 2 ? Simd::high_half(pair) : pair);
        PGL_UNROLL for (int j = 0; j < NT; ++j) {
            sum[g][j] = Simd::add(sum[g][j], Simd::mul_int(part[g][j], scale));
        }
    }
    if constexpr (s + 1 < unit_subs<T>) {
        wide_unit<T, s + 1>(sum, t, unit, scales, y, first);
    }
}

/// All sums of a super-block where a field may not fit 16 bits: rare, and slow.
template <Type T, int RG, int NT>
__attribute__((noinline)) void wide_sums(I (&sum)[RG][NT], const Tile & t, const uint8_t * codes,
                                         const uint8_t * scales, const uint32_t * y) {
    fill(sum, Simd::zero());
    for (int s = 0; s < 64 / sub_operands<T>; s += unit_subs<T>) {
        wide_unit<T, 0>(sum, t, codes + s / unit_subs<T> * unit_bytes<T>, scales, y, s);
    }
}

/// Prefetches the scales of a super-block: those `ahead` bytes of codes further on, and on the first pass its own.
template <Type T> PGL_INLINE void prefetch_scales(const uint8_t * scales, int64_t ahead, bool cold) {
    constexpr BlockFormat format = block_formats[T];
    if (cold) {
        PGL_UNROLL for (int at = 0; at < format.scale_bytes; at += 64) {
            Simd::prefetch_near(scales + at);
        }
    }
    if (ahead) {
        PGL_UNROLL for (int at = 0; at < format.scale_bytes; at += 64) {
            Simd::prefetch(scales + ahead / format.code_bytes * format.scale_bytes + at);
        }
    }
}

template <Type T, int RG, int NT> void tile_256(const Tile & t) {
    constexpr BlockFormat format = block_formats[T];
    F total[RG][NT];
    fill(total, Simd::zero_f());
    const uint32_t * y = t.panel;
    const uint8_t * codes = t.codes;
    const uint8_t * scales = t.scales;
    for (int64_t b = 0; b < t.n_blocks;
         ++b, y += panel_256::words * NT, codes += format.code_bytes, scales += format.scale_bytes) {
        PGL_UNROLL for (int g = 0; g < RG; ++g) {
            prefetch_scales<T>(scales + g * t.scales_stride(), t.ahead[g], t.cold);
        }
        I sum[RG][NT];
        fill(sum, Simd::zero());
        uint32_t wide = 0;
        PGL_UNROLL for (int j = 0; j < NT; ++j) {
            wide |= y[panel_256::wide * NT + j];
        }
        if (__builtin_expect(wide == 0, 1)) {
            for (int p = 0; p < 32 / sub_operands<T>; ++p) {
                sub_blocks<T, true>(sum, t, codes, scales, y, p);
                if constexpr (unit_subs<T> > 2) {
                    __asm__("" : "+r"(codes));
                    sub_blocks<T, false>(sum, t, codes, scales, y, ++p);
                }
            }
        } else {
            I found[RG][NT];  // not `sum` itself: what has an address does not stay in registers
            wide_sums<T, RG, NT>(found, t, codes, scales, y);
            PGL_UNROLL for (int g = 0; g < RG; ++g) {
                PGL_UNROLL for (int j = 0; j < NT; ++j) {
                    sum[g][j] = found[g][j];
                }
            }
        }
        PGL_UNROLL for (int g = 0; g < RG; ++g) {
            const uint8_t * s = scales + g * t.scales_stride();
            const F d = Simd::half(s + 2 * t.row);
            F scaled[NT];
            __asm__("" : "+r"(y));  // broadcast again for every group
            PGL_UNROLL for (int j = 0; j < NT; ++j) {
                scaled[j] = Simd::mul(Simd::to_float(sum[g][j]), d);
            }
            if constexpr (T != q6_k) {
                const F dmin = Simd::half(s + 32 + 2 * t.row);
                I mins[NT];
                PGL_UNROLL for (int j = 0; j < NT; ++j) {
                    mins[j] = Simd::zero();
                }
                PGL_UNROLL for (int p = 0; p < 4; ++p) {
                    const I m = six_bits<true>(s, p, t.row);
                    PGL_UNROLL for (int j = 0; j < NT; ++j) {
                        mins[j] = Simd::dot_pairs(mins[j], m, Simd::broadcast(y[(panel_256::sums + p) * NT + j]));
                    }
                }
                PGL_UNROLL for (int j = 0; j < NT; ++j) {
                    scaled[j] = Simd::fnma(dmin, Simd::to_float(mins[j]), scaled[j]);
                }
            }
            PGL_UNROLL for (int j = 0; j < NT; ++j) {
                total[g][j] =
                    Simd::fma(scaled[j], Simd::broadcast_f(as_float(y[panel_256::scale * NT + j])), total[g][j]);
            }
        }
    }
    store_tile<RG, NT>(t, total);
}

}  // namespace
}  // namespace pgl::kernels
