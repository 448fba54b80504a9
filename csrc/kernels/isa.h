// What one instruction set provides for MUL_MAT. PODs only: an ISA file that saw ggml or the standard library could
// leak its instructions into shared inline functions.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace pgl::kernels {

/// Activations are quantised into panels of up to `max_tokens` tokens; `nt` tokens side by side, block after block.
/// One block of a panel, in 32-bit words (every plane holds `nt` words per step, token innermost):
///   block of 32  (q4_0, q4_1, q8_0):  8 codes (4 x int8), -8 * sum, -128 * sum, scale, scale * sum
///   block of 256 (q4_k, q5_k, q6_k): 64 codes, 16 x what sub-blocks of 16 start from (-32 * sum, in the ISA's form),
///                                    4 x (int16 pair of sums of 32, the odd one low), scale, 1 if wide (quantize.h)
constexpr int words_32 = 12;
constexpr int words_256 = 86;

struct Multiply {
    const uint8_t * codes;    // of the first row group
    const uint8_t * scales;
    int64_t n_groups;         // of 16 rows
    int64_t n_blocks;         // per row
    const uint32_t * panel;
    int n_tokens;             // in the panel, 1..max_tokens
    float * out;              // [n_tokens][16 * n_groups], tokens out_stride floats apart
    int64_t out_stride;
    int64_t ahead[2];         // bytes of codes to prefetch ahead of the reads, even and odd groups; 0 = none
    bool cold;                // these weights are read for the first time
};

struct Isa {
    const char * name;
    int max_tokens;
    int lanes;     // rows in a vector: a group of fewer is passed over twice
    /// Quantises blocks [first, last) of one row into column `token` of a panel of `nt` tokens.
    void (*quantize_32)(const float * row, int64_t first, int64_t last, uint32_t * panel, int nt, int token);
    void (*quantize_256)(const float * row, int64_t first, int64_t last, uint32_t * panel, int nt, int token);
    /// Indexed by Type (layout.h). Every entry adds the blocks of a row in ascending k, in the same steps for any
    /// shape.
    void (*multiply[6])(const Multiply & task);
};

extern const Isa scalar;
extern const Isa avx2;
extern const Isa avxvnni;
extern const Isa avx512;

}  // namespace pgl::kernels
