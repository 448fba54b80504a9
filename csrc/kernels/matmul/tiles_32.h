// Tiles of the types with blocks of 32: Q4_0, Q4_1, Q8_0.
#pragma once

#include "kernels/matmul/tile.h"

namespace pgl::kernels {
namespace {

template <Type T, int RG, int NT> void tile_32(const Tile & t) {
    constexpr BlockFormat format = block_formats[T];
    F total[RG][NT];
    fill(total, Simd::zero_f());
    const uint32_t * y = t.panel;
    const uint8_t * codes = t.codes;
    const uint8_t * scales = t.scales;
    for (int64_t b = 0; b < t.n_blocks;
         ++b, y += panel_32::words * NT, codes += format.code_bytes, scales += format.scale_bytes) {
        I acc[RG][NT];
        PGL_UNROLL for (int j = 0; j < NT; ++j) {
            // The codes carry a bias; starting from -bias * sum(y) takes it out exactly.
            const I start = T == q4_0                      ? Simd::broadcast(y[panel_32::start_q4_0 * NT + j])
                            : T == q8_0 && Simd::any_bytes ? Simd::broadcast(y[panel_32::start_q8_0 * NT + j])
                                                           : Simd::zero();
            PGL_UNROLL for (int g = 0; g < RG; ++g) {
                acc[g][j] = start;
            }
        }
        if constexpr (T == q8_0) {
            PGL_UNROLL for (int o = 0; o < 8; ++o) {
                Simd::Bytes w[RG];
                PGL_UNROLL for (int g = 0; g < RG; ++g) {
                    const uint8_t * at = codes + g * t.codes_stride() + 64 * o;
                    if (g == 0 || !Simd::halves_together) {
                        Simd::prefetch(at + t.ahead[g]);
                    }
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
                    const uint8_t * at = codes + g * t.codes_stride() + 64 * p;
                    if (g == 0 || !Simd::halves_together) {
                        Simd::prefetch(at + t.ahead[g]);
                    }
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
            const uint8_t * s = scales + g * t.scales_stride();
            const F d = Simd::half(s + 2 * t.row);
            PGL_UNROLL for (int j = 0; j < NT; ++j) {
                const F scaled = Simd::mul(Simd::to_float(acc[g][j]), d);
                total[g][j] = Simd::fma(scaled, Simd::broadcast_f(as_float(y[panel_32::scale * NT + j])), total[g][j]);
            }
            if constexpr (T == q4_1) {
                const F m = Simd::half(s + 32 + 2 * t.row);
                PGL_UNROLL for (int j = 0; j < NT; ++j) {
                    total[g][j] =
                        Simd::fma(m, Simd::broadcast_f(as_float(y[panel_32::scaled_sum * NT + j])), total[g][j]);
                }
            }
        }
    }
    store_tile<RG, NT>(t, total);
}

}  // namespace
}  // namespace pgl::kernels
