// The register tiles of MUL_MAT, written once over a `Simd` that each ISA file defines before including this.
// Everything here has internal linkage: no instruction of one ISA can end up in another's function.
//
// A tile is RG vectors of weight rows by NT tokens. Weights are the unsigned operand, 4 k of `lanes` rows per vector;
// activations are broadcast, 4 k of one token. Per block: exact integer sums, then a fixed order of f32 steps, the same
// in every tile shape, so that a row's bits do not depend on its neighbours.
#pragma once

#include "isa.h"
#include "layout.h"

namespace pgl::kernels {
namespace {

using I = Simd::I;
using F = Simd::F;

#define PGL_UNROLL _Pragma("GCC unroll 16")

struct Tile {
    const uint8_t * codes;       // of this tile's first group, at its first lane
    const uint8_t * scales;
    int64_t codes_stride;        // bytes from group to group
    int64_t scales_stride;
    int row;                     // first row inside the group: 0, or 8 for the second half with 8 lanes
    int64_t n_blocks;
    const uint32_t * panel;
    float * out;
    int64_t out_stride;
    int64_t ahead[2];
};

inline float as_float(uint32_t word) {
    float value;
    __builtin_memcpy(&value, &word, 4);
    return value;
}

template <int RG, int NT>
inline void store_tile(const Tile & t, const F (&total)[RG][NT]) {
    PGL_UNROLL for (int g = 0; g < RG; ++g) {
        PGL_UNROLL for (int j = 0; j < NT; ++j) {
            Simd::store(t.out + j * t.out_stride + g * group_rows, total[g][j]);
        }
    }
}

// Blocks of 32 ------------------------------------------------------------------------------------------------------

template <Type T, int RG, int NT>
void tile_32(const Tile & t) {
    constexpr Shape shape = shapes[T];
    F total[RG][NT];
    PGL_UNROLL for (int g = 0; g < RG; ++g) {
        PGL_UNROLL for (int j = 0; j < NT; ++j) {
            total[g][j] = Simd::zero_f();
        }
    }
    const uint32_t * y = t.panel;
    const uint8_t * codes = t.codes;
    const uint8_t * scales = t.scales;
    for (int64_t b = 0; b < t.n_blocks; ++b, y += words_32 * NT, codes += shape.code_bytes, scales += shape.scale_bytes) {
        I acc[RG][NT];
        PGL_UNROLL for (int j = 0; j < NT; ++j) {
            // The codes carry a bias; starting from -bias * sum(y) takes it out exactly.
            const I start = T == q4_0                          ? Simd::broadcast(y[8 * NT + j])
                            : T == q8_0 && Simd::biased_bytes ? Simd::broadcast(y[9 * NT + j])
                                                              : Simd::zero();
            PGL_UNROLL for (int g = 0; g < RG; ++g) {
                acc[g][j] = start;
            }
        }
        if constexpr (T == q8_0) {
            PGL_UNROLL for (int o = 0; o < 8; ++o) {
                Simd::Bytes w[RG];
                PGL_UNROLL for (int g = 0; g < RG; ++g) {
                    const uint8_t * at = codes + g * t.codes_stride + 64 * o;
                    Simd::prefetch(at + t.ahead[g]);
                    w[g] = Simd::bytes(Simd::load(at));
                }
                PGL_UNROLL for (int j = 0; j < NT; ++j) {
                    const I v = Simd::broadcast(y[o * NT + j]);
                    PGL_UNROLL for (int g = 0; g < RG; ++g) {
                        acc[g][j] = Simd::dot_bytes(acc[g][j], w[g], v);
                    }
                }
            }
        } else {
            Simd::Part part[RG][NT];
            PGL_UNROLL for (int g = 0; g < RG; ++g) {
                PGL_UNROLL for (int j = 0; j < NT; ++j) {
                    part[g][j] = Simd::begin(acc[g][j]);
                }
            }
            PGL_UNROLL for (int p = 0; p < 4; ++p) {
                I low[RG], high[RG];
                PGL_UNROLL for (int g = 0; g < RG; ++g) {
                    const uint8_t * at = codes + g * t.codes_stride + 64 * p;
                    Simd::prefetch(at + t.ahead[g]);
                    const I v = Simd::load(at);
                    low[g] = Simd::mask(v, 0x0f);
                    high[g] = Simd::mask(Simd::template shift<-4>(v), 0x0f);
                }
                PGL_UNROLL for (int j = 0; j < NT; ++j) {
                    const I v = Simd::broadcast(y[2 * p * NT + j]);
                    PGL_UNROLL for (int g = 0; g < RG; ++g) {
                        part[g][j] = Simd::dot(part[g][j], low[g], v);
                    }
                }
                PGL_UNROLL for (int j = 0; j < NT; ++j) {
                    const I v = Simd::broadcast(y[(2 * p + 1) * NT + j]);
                    PGL_UNROLL for (int g = 0; g < RG; ++g) {
                        part[g][j] = Simd::dot(part[g][j], high[g], v);
                    }
                }
            }
            PGL_UNROLL for (int g = 0; g < RG; ++g) {
                PGL_UNROLL for (int j = 0; j < NT; ++j) {
                    acc[g][j] = Simd::end(acc[g][j], part[g][j]);
                }
            }
        }
        PGL_UNROLL for (int g = 0; g < RG; ++g) {
            const uint8_t * s = scales + g * t.scales_stride;
            const F d = Simd::half(s + 2 * t.row);
            PGL_UNROLL for (int j = 0; j < NT; ++j) {
                const F scaled = Simd::mul(Simd::to_float(acc[g][j]), d);
                total[g][j] = Simd::fma(scaled, Simd::broadcast_f(as_float(y[10 * NT + j])), total[g][j]);
            }
            if constexpr (T == q4_1) {
                const F m = Simd::half(s + 32 + 2 * t.row);
                PGL_UNROLL for (int j = 0; j < NT; ++j) {
                    total[g][j] = Simd::fma(m, Simd::broadcast_f(as_float(y[11 * NT + j])), total[g][j]);
                }
            }
        }
    }
    store_tile<RG, NT>(t, total);
}

// Super-blocks of 256 -----------------------------------------------------------------------------------------------

/// Six-bit scales and mins of Q4_K / Q5_K as bytes [8 sub-blocks][16 rows].
inline void six_bits(const uint8_t * s, uint8_t * scale, uint8_t * min) {
    PGL_UNROLL for (int at = 0; at < 128; at += Simd::lanes * 4) {
        const I low = Simd::load(s + 64 + at);
        I high = Simd::load(s + 192 + at % 64);
        high = at >= 64 ? Simd::template shift<-4>(high) : high;
        Simd::store(scale + at, Simd::either(Simd::mask(low, 0x0f), Simd::mask(Simd::template shift<4>(high), 0x30)));
        Simd::store(min + at, Simd::either(Simd::mask(Simd::template shift<-4>(low), 0x0f),
                                           Simd::mask(Simd::template shift<2>(high), 0x30)));
    }
}

/// Codes 4 * o .. 4 * o + 3 of a sub-block whose nibble vector is `v` and high-bit vector `h`.
template <Type T, int o>
inline I operand(I v, I h) {
    const I low = Simd::mask(Simd::template shift<o % 2 ? -4 : 0>(v), 0x0f);
    if constexpr (T == q5_k) {
        return Simd::either(low, Simd::mask(Simd::template shift<4 - o>(h), 0x10));
    } else if constexpr (T == q6_k) {
        return Simd::either(low, Simd::mask(Simd::template shift<4 - 2 * o>(h), 0x30));
    } else {
        return low;
    }
}

template <Type T, int o, int RG, int NT>
inline void step(Simd::Part (&part)[RG][NT], const I (&v)[RG], const I (&h)[RG], const uint32_t * y) {
    I w[RG];
    PGL_UNROLL for (int g = 0; g < RG; ++g) {
        w[g] = operand<T, o>(v[g], h[g]);
    }
    PGL_UNROLL for (int j = 0; j < NT; ++j) {
        const I a = Simd::broadcast(y[o * NT + j]);
        PGL_UNROLL for (int g = 0; g < RG; ++g) {
            part[g][j] = Simd::dot(part[g][j], w[g], a);
        }
    }
}

/// Operands o and o + 1, which share a nibble vector; folds 16-bit partial sums before they could overflow.
template <Type T, int o, int RG, int NT>
inline void pair(I (&acc)[RG][NT], Simd::Part (&part)[RG][NT], const Tile & t, const uint8_t * codes, const I (&h)[RG],
                 const uint32_t * y) {
    constexpr int operands = T == q6_k ? 4 : 8;
    constexpr int fold = T == q4_k ? 8 : T == q5_k ? 4 : 2;
    I v[RG];
    PGL_UNROLL for (int g = 0; g < RG; ++g) {
        const uint8_t * at = codes + g * t.codes_stride + 64 * (o / 2);
        Simd::prefetch(at + t.ahead[g]);
        v[g] = Simd::load(at);
    }
    if constexpr (o % fold == 0) {
        PGL_UNROLL for (int g = 0; g < RG; ++g) {
            PGL_UNROLL for (int j = 0; j < NT; ++j) {
                part[g][j] = Simd::begin(acc[g][j]);
            }
        }
    }
    step<T, o>(part, v, h, y);
    step<T, o + 1>(part, v, h, y);
    if constexpr ((o + 2) % fold == 0) {
        PGL_UNROLL for (int g = 0; g < RG; ++g) {
            PGL_UNROLL for (int j = 0; j < NT; ++j) {
                acc[g][j] = Simd::end(acc[g][j], part[g][j]);
            }
        }
    }
    if constexpr (o + 2 < operands) {
        pair<T, o + 2>(acc, part, t, codes, h, y);
    }
}

template <Type T, int RG, int NT>
void tile_256(const Tile & t) {
    constexpr Shape shape = shapes[T];
    constexpr int n_sub = T == q6_k ? 16 : 8;
    constexpr int operands = 64 / n_sub;
    constexpr int sub_bytes = shape.code_bytes / n_sub;
    F total[RG][NT];
    PGL_UNROLL for (int g = 0; g < RG; ++g) {
        PGL_UNROLL for (int j = 0; j < NT; ++j) {
            total[g][j] = Simd::zero_f();
        }
    }
    const uint32_t * y = t.panel;
    const uint8_t * codes = t.codes;
    const uint8_t * scales = t.scales;
    for (int64_t b = 0; b < t.n_blocks; ++b, y += words_256 * NT, codes += shape.code_bytes, scales += shape.scale_bytes) {
        alignas(64) uint8_t scale[RG][128], min[RG][128];
        if constexpr (T != q6_k) {
            PGL_UNROLL for (int g = 0; g < RG; ++g) {
                six_bits(scales + g * t.scales_stride, scale[g], min[g]);
            }
        }
        F sum[RG][NT];
        PGL_UNROLL for (int g = 0; g < RG; ++g) {
            PGL_UNROLL for (int j = 0; j < NT; ++j) {
                sum[g][j] = Simd::zero_f();
            }
        }
        for (int s = 0; s < n_sub; ++s) {
            const uint8_t * sub = codes + s * sub_bytes;
            I acc[RG][NT], h[RG];
            Simd::Part part[RG][NT];
            PGL_UNROLL for (int j = 0; j < NT; ++j) {
                const I start = T == q6_k ? Simd::broadcast(y[(64 + s) * NT + j]) : Simd::zero();
                PGL_UNROLL for (int g = 0; g < RG; ++g) {
                    acc[g][j] = start;
                }
            }
            PGL_UNROLL for (int g = 0; g < RG; ++g) {
                if constexpr (T == q4_k) {
                    h[g] = Simd::zero();
                } else {
                    const uint8_t * at = sub + g * t.codes_stride + 64 * (operands / 2);
                    Simd::prefetch(at + t.ahead[g]);
                    h[g] = Simd::load(at);
                }
            }
            pair<T, 0>(acc, part, t, sub, h, y + s * operands * NT);
            PGL_UNROLL for (int g = 0; g < RG; ++g) {
                I weight;
                if constexpr (T == q6_k) {
                    weight = Simd::widen_signed(scales + g * t.scales_stride + 32 + 16 * s + t.row);
                } else {
                    weight = Simd::widen(scale[g] + 16 * s + t.row);
                }
                const F factor = Simd::to_float(weight);
                PGL_UNROLL for (int j = 0; j < NT; ++j) {
                    sum[g][j] = Simd::fma(Simd::to_float(acc[g][j]), factor, sum[g][j]);
                }
            }
        }
        PGL_UNROLL for (int g = 0; g < RG; ++g) {
            const uint8_t * s = scales + g * t.scales_stride;
            const F d = Simd::half(s + 2 * t.row);
            PGL_UNROLL for (int j = 0; j < NT; ++j) {
                sum[g][j] = Simd::mul(sum[g][j], d);
            }
            if constexpr (T != q6_k) {
                const F dmin = Simd::half(s + 32 + 2 * t.row);
                I mins[NT];
                PGL_UNROLL for (int j = 0; j < NT; ++j) {
                    mins[j] = Simd::zero();
                }
                PGL_UNROLL for (int p = 0; p < 4; ++p) {
                    const I m = Simd::either(Simd::widen(min[g] + 32 * p + t.row),
                                             Simd::high_half(Simd::widen(min[g] + 32 * p + 16 + t.row)));
                    PGL_UNROLL for (int j = 0; j < NT; ++j) {
                        mins[j] = Simd::dot_pairs(mins[j], m, Simd::broadcast(y[(80 + p) * NT + j]));
                    }
                }
                PGL_UNROLL for (int j = 0; j < NT; ++j) {
                    sum[g][j] = Simd::fnma(dmin, Simd::to_float(mins[j]), sum[g][j]);
                }
            }
            PGL_UNROLL for (int j = 0; j < NT; ++j) {
                total[g][j] = Simd::fma(sum[g][j], Simd::broadcast_f(as_float(y[84 * NT + j])), total[g][j]);
            }
        }
    }
    store_tile<RG, NT>(t, total);
}

// Shapes ------------------------------------------------------------------------------------------------------------

template <Type T, int RG, int NT>
void tile(const Tile & t) {
    if constexpr (shapes[T].block == 32) {
        tile_32<T, RG, NT>(t);
    } else {
        tile_256<T, RG, NT>(t);
    }
}

template <Type T, int NT>
void groups(const Multiply & task) {
    constexpr int wide = NT <= Simd::wide_tokens ? 2 : 1;
    const int64_t codes_stride = task.n_blocks * shapes[T].code_bytes;
    const int64_t scales_stride = task.n_blocks * shapes[T].scale_bytes;
    for (int64_t g = 0; g < task.n_groups;) {
        const bool two = wide == 2 && g + 2 <= task.n_groups;
        for (int row = 0; row < group_rows; row += Simd::lanes) {
            const Tile t = {task.codes + g * codes_stride + 4 * row, task.scales + g * scales_stride, codes_stride,
                            scales_stride, row, task.n_blocks, task.panel, task.out + g * group_rows + row,
                            task.out_stride, {task.ahead[0], task.ahead[1]}};
            two ? tile<T, wide, NT>(t) : tile<T, 1, NT>(t);
        }
        g += two ? 2 : 1;
    }
}

template <Type T, int NT = Simd::max_tokens>
void multiply(const Multiply & task) {
    if constexpr (NT > 1) {
        if (task.n_tokens < NT) {
            return multiply<T, NT - 1>(task);
        }
    }
    groups<T, NT>(task);
}

#undef PGL_UNROLL

}  // namespace
}  // namespace pgl::kernels
