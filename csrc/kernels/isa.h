// What one instruction set provides for MUL_MAT. PODs only: an ISA file that saw ggml or the standard library could
// leak its instructions into shared inline functions.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace pgl::kernels {

/// Activations are quantised into panels of up to `max_tokens` tokens; `nt` tokens side by side, block after block.
/// A block of a panel is `words` planes of `nt` 32-bit words, token innermost: word w of token t is at w * nt + t. The
/// constants say which word holds what.

/// Blocks of 32 activations, for Q4_0, Q4_1 and Q8_0. Words 0..7 are the codes, 4 int8 each.
namespace panel_32 {
constexpr int start_q4_0 = 8;     // -8 * the sum of the codes: what an accumulator starts from (Q4_0's bias)
constexpr int start_q8_0 = 9;     // -128 * that sum (the bias of Q8_0's unsigned codes)
constexpr int scale = 10;         // f32
constexpr int scaled_sum = 11;    // f32: scale * sum
constexpr int words = 12;
}  // namespace panel_32

/// Blocks of 256 activations, for Q4_K, Q5_K and Q6_K. Words 0..63 are the codes, 4 int8 each.
namespace panel_256 {
constexpr int start_q6_k = 64;  // 16 words, one per sub-block of 16: -32 * its sum, in the instruction set's own form
constexpr int sums = 80;  // 4 words, each a pair of int16 sums of 32 codes, the odd sub-block's low
constexpr int scale = 84;  // f32
constexpr int wide = 85;  // 1 if a sum may not fit 16 bits (quantize.h), else 0
constexpr int words = 86;
}  // namespace panel_256

constexpr int max_panels = 8;  // in one call

struct Multiply {
    const uint8_t * codes;  // of the first row group
    const uint8_t * scales;
    int64_t n_groups;  // of 16 rows
    int64_t n_blocks;  // per row
    const uint32_t * panel;  // the first of n_panels, one after the other
    int n_panels;
    int n_tokens[max_panels];  // in each panel, 1..max_tokens
    float * out;  // [tokens of all panels][16 * n_groups], tokens out_stride floats apart
    int64_t out_stride;
    int64_t ahead[2];  // bytes of codes to prefetch ahead of the reads, even and odd groups; 0 = none
    bool cold;  // these weights are read for the first time
};

struct Isa {
    const char * name;
    int max_tokens;
    int panels_256;  // of blocks of 256 in one call: what it unpacks of the weights serves all; of 32 always one
    int lanes;  // rows in a vector
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
