// What one instruction set provides for attention. PODs only, as in isa.h.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace pgl::kernels {

/// Cells per online-softmax step, and cells per split: a split starts from nothing and is folded into the total, so
/// that threads can share one row. Both count from cell 0 of the stream; they fix the order of every sum.
constexpr int block_cells = 64;
constexpr int split_cells = 128;
constexpr int max_head_size = 256;

enum class CellType { f16, q8_0, f32 };

/// The rows of one KV head: `n_tokens` tokens x the `n_group` query heads that share it, token outermost.
struct AttentionRows {
    const char * q;              // f32[dk] at q + token * q_token_bytes + head * q_head_bytes
    size_t q_token_bytes, q_head_bytes;
    const char * k;              // [dk] of k_type at k + cell * k_bytes
    const char * v;              // [dv] of v_type at v + cell * v_bytes
    size_t k_bytes, v_bytes;
    CellType k_type, v_type;
    const uint16_t * mask;       // f16 at mask + token * mask_stride + cell; null: every cell counts
    int64_t mask_stride;
    int64_t n_cells;             // past the last unmasked one
    int n_tokens, n_group;
    int dk, dv;                  // multiples of 16
    float scale;
};

/// Running softmax of each row: maximum, sum of exp(score - maximum), and that sum weighted with V.
struct AttentionState {
    float * max;                 // [rows]
    float * sum;                 // [rows]
    float * out;                 // [rows][dv]
};

struct AttentionIsa {
    /// Nothing seen yet.
    void (*start)(AttentionState state, int n_rows, int dv);
    /// Works out the split of n cells from `first`, a multiple of split_cells, and folds it into `total`.
    void (*attend)(const AttentionRows & rows, int64_t first, int n, AttentionState total, char * scratch);
    /// total = total (+) part. Folding into nothing gives part's own bits.
    void (*fold)(AttentionState total, AttentionState part, int n_rows, int dv);
    /// One row's result; zeros if it saw no cell.
    void (*finish)(float sum, const float * out, int dv, float * dst);
    /// Past the last unmasked of n cells, 0 if none.
    int64_t (*valid_end)(const uint16_t * mask, int64_t n);
};

/// Bytes of `scratch`: K transposed, V, then per token its cells as a set and a padded mask.
constexpr size_t attention_scratch_bytes(int dk, int dv, int n_tokens) {
    return sizeof(float) * split_cells * (static_cast<size_t>(dk) + dv) +
           (split_cells / 8 + sizeof(uint16_t) * split_cells) * static_cast<size_t>(n_tokens);
}

extern const AttentionIsa attention_scalar;
extern const AttentionIsa attention_avx2;
extern const AttentionIsa attention_avx512;

}  // namespace pgl::kernels
