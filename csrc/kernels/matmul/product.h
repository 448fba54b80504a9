// One product, apart from ggml and threads: activations in panels, weight rows in blocks that stay in the cache.
#pragma once

#include "kernels/isa.h"
#include "kernels/matmul/forms.h"
#include "kernels/matmul/layout.h"

namespace pgl::kernels {

/// M tokens in panels of nearly equal width; a function of M alone.
struct Panels {
    int64_t n_tokens;
    int64_t n_panels;
    int64_t words;  // of one token over all blocks

    static Panels of(const Isa & isa, int64_t n_tokens, int block, int64_t n_blocks) {
        return {n_tokens, (n_tokens + isa.max_tokens - 1) / isa.max_tokens,
                n_blocks * (block == 32 ? panel_32::words : panel_256::words)};
    }
    int64_t first_token(int64_t panel) const { return n_tokens * panel / n_panels; }
    int width(int64_t panel) const { return static_cast<int>(first_token(panel + 1) - first_token(panel)); }
    int64_t panel_of(int64_t token) const { return ((token + 1) * n_panels - 1) / n_tokens; }
    uint32_t * at(void * base, int64_t panel) const {
        return static_cast<uint32_t *>(base) + first_token(panel) * words;
    }
};

struct Product {
    Form form;
    Planes planes;
    Panels panels;
    void * activations;  // the panels
    float * out;  // [n_tokens][out_stride]
    int64_t out_stride;
};

/// Multiplies the rows of groups [first, last).
void multiply_groups(const Product & product, int64_t first, int64_t last);

/// Row groups with fewer bytes of codes than this end before the hardware's prefetcher is up to speed.
constexpr int64_t short_run = 16 << 10;
/// What is prefetched then, in bytes ahead.
constexpr int64_t far_bytes = 18 << 10;

}  // namespace pgl::kernels
