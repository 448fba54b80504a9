// The threaded driver of MUL_MAT: quantise the activations into panels, then share the weight rows.
#include "kernels/matmul/matmul.h"

#include <algorithm>

#include "ggml-cpu-impl.h"

#include "kernels/dispatch.h"
#include "kernels/matmul/plan.h"

namespace pgl::kernels {

Type type_of(ggml_type type) {
    switch (type) {
    case GGML_TYPE_Q4_0:
        return q4_0;
    case GGML_TYPE_Q4_1:
        return q4_1;
    case GGML_TYPE_Q8_0:
        return q8_0;
    case GGML_TYPE_Q4_K:
        return q4_k;
    case GGML_TYPE_Q5_K:
        return q5_k;
    case GGML_TYPE_Q6_K:
        return q6_k;
    default:
        return n_types;
    }
}

namespace {

/// M tokens in panels of nearly equal width; a function of M alone.
struct Panels {
    int64_t n_tokens;
    int64_t n_panels;
    int64_t words;  // of one token over all blocks

    int64_t first_token(int64_t panel) const { return n_tokens * panel / n_panels; }
    int width(int64_t panel) const { return static_cast<int>(first_token(panel + 1) - first_token(panel)); }
    int64_t panel_of(int64_t token) const { return ((token + 1) * n_panels - 1) / n_tokens; }
    uint32_t * at(void * base, int64_t panel) const {
        return static_cast<uint32_t *>(base) + first_token(panel) * words;
    }
};

Panels panels_of(const Isa & isa, int64_t n_tokens, int block, int64_t n_blocks) {
    return {n_tokens, (n_tokens + isa.max_tokens - 1) / isa.max_tokens,
            n_blocks * (block == 32 ? panel_32::words : panel_256::words)};
}

/// Below this many activations every thread quantises them for itself: cheaper than a barrier.
constexpr int64_t private_limit = 8192;
/// A block of weight rows that stays in the second-level cache while all tokens pass over it.
constexpr int64_t cached_bytes = 384 << 10;
/// Row groups shorter than this end before the hardware prefetcher is up to speed; then we ask, this far ahead.
constexpr int64_t short_run = 16 << 10, prefetch_bytes = 18 << 10;
/// How far ahead we ask where the hardware does well but not well enough.
constexpr int64_t near_bytes = 4 << 10;
/// Up to this many panels the memory is the limit as much as the arithmetic.
constexpr int64_t few_panels = 4;
constexpr int64_t alignment = 64;

int64_t rows_of(const ggml_tensor * tensor) {
    return tensor->ne[1] * tensor->ne[2] * tensor->ne[3];
}

int64_t scratch_bytes(const Panels & panels) {
    return (panels.n_tokens * panels.words * 4 + alignment - 1) / alignment * alignment;
}

bool is_private(const ggml_tensor * activations) {
    return activations->ne[0] * rows_of(activations) <= private_limit;
}

const float * row_of(const ggml_tensor * tensor, int64_t row) {
    const int64_t i1 = row % tensor->ne[1];
    const int64_t i2 = row / tensor->ne[1] % tensor->ne[2];
    const int64_t i3 = row / tensor->ne[1] / tensor->ne[2];
    const auto * base = static_cast<const char *>(tensor->data);
    return reinterpret_cast<const float *>(base + i1 * tensor->nb[1] + i2 * tensor->nb[2] + i3 * tensor->nb[3]);
}

/// Quantises share `part` of `n_parts` of all (token, block) pairs.
void quantize(const Isa & isa, const Panels & panels, int block, int64_t n_blocks, const ggml_tensor * activations,
              void * scratch, int64_t part, int64_t n_parts) {
    const auto run = block == 32 ? isa.quantize_32 : isa.quantize_256;
    const int64_t n_units = panels.n_tokens * n_blocks;
    const int64_t last = n_units * (part + 1) / n_parts;
    for (int64_t unit = n_units * part / n_parts; unit < last;) {
        const int64_t token = unit / n_blocks;
        const int64_t end = std::min(last, (token + 1) * n_blocks);
        const int64_t panel = panels.panel_of(token);
        run(row_of(activations, token), unit - token * n_blocks, end - token * n_blocks, panels.at(scratch, panel),
            panels.width(panel), static_cast<int>(token - panels.first_token(panel)));
        unit = end;
    }
}

/// A row block: row groups that stay in the second-level cache while all tokens pass over them, and what to prefetch
/// meanwhile.
struct RowBlock {
    int64_t n_groups;
    int64_t run;        // code bytes of a group, which lie in one piece
    int64_t n_panels;
    bool in_order;      // every byte is read once, in the order of memory
    bool streaming;     // so few tokens that the memory is the limit

    int64_t ahead(int64_t panel, int group) const {
        if (run < short_run) {
            return prefetch_bytes;
        }
        if (n_panels == 1 && in_order) {
            return streaming ? 0 : near_bytes;   // the hardware's own prefetcher does most of it, or all
        }
        // The next pair of groups arrives while this one is multiplied, one group per pass if there are several.
        return n_panels == 1 || panel == group ? 2 * run : 0;
    }
};

RowBlock row_block_of(const Isa & isa, const Planes & planes, const Panels & panels) {
    const BlockFormat & format = block_formats[planes.type];
    const int64_t run = planes.n_blocks * format.code_bytes;
    // As many as the second-level cache keeps; even, so that kernels can pair row groups.
    const int64_t group_bytes = run + planes.n_blocks * format.scale_bytes;
    const bool few = panels.n_panels > 1 && panels.n_panels <= few_panels && run >= short_run;
    const int64_t n_groups = few ? 2 : std::max<int64_t>(2, cached_bytes / group_bytes / 2 * 2);
    // Tokens per bit of a weight, where arithmetic begins to outweigh reading: measured, and little changes around it.
    const bool streaming = panels.n_tokens * format.block * 5 <= format.block_bytes * 8 * 4;
    return {n_groups, run, panels.n_panels, isa.lanes == group_rows && planes.type != q5_k, streaming};
}

/// The first row group of thread `ith`'s share, an even number because kernels take row groups in pairs. With few
/// activations each thread first reads its own share as one linear stream. The last quarter of the groups, from
/// share_begin(n_groups, nth, nth) on, goes to whoever is done first: threads do not get equal bandwidth.
int64_t share_begin(int64_t n_groups, int64_t ith, int64_t nth) {
    const int64_t fixed = n_groups - n_groups / 4;
    return std::min(n_groups, (fixed + 1) / 2 * ith / nth * 2);
}

/// Prefetches the beginning of this thread's share of the next product while other threads finish this one.
void fetch_share(const ggml_tensor * weights, int64_t ith, int64_t nth) {
    const Planes planes = Planes::of(type_of(weights->type), weights->ne[1], weights->ne[0], weights->data);
    const int64_t run = planes.n_blocks * block_formats[planes.type].code_bytes;
    const uint8_t * begin = planes.codes + share_begin(weights->ne[1] / group_rows, ith, nth) * run;
    for (int64_t at = 0; at < std::min(2 * run, prefetch_bytes); at += alignment) {
        __builtin_prefetch(begin + at, 0, 2);
    }
}

}  // namespace

bool matmul_supports(const ggml_tensor * op) {
    const ggml_tensor * weights = op->src[0];
    const ggml_tensor * activations = op->src[1];
    const Type type = type_of(weights->type);
    return type != n_types && weights->ne[2] == 1 && weights->ne[3] == 1 && weights->ne[1] % group_rows == 0 &&
           weights->ne[0] % block_formats[type].block == 0 && ggml_is_contiguous(weights) && ggml_is_contiguous(op) &&
           activations->type == GGML_TYPE_F32 && activations->nb[0] == sizeof(float) && op->type == GGML_TYPE_F32;
}

void matmul_plan(int n_threads, const ggml_tensor * op) {
    const BlockFormat & format = block_formats[type_of(op->src[0]->type)];
    const Panels panels = panels_of(*active_isa(), rows_of(op->src[1]), format.block, op->src[0]->ne[0] / format.block);
    plan_product(op, format.block, scratch_bytes(panels) * (is_private(op->src[1]) ? n_threads : 1));
}

void matmul_compute(const ggml_compute_params * params, ggml_tensor * op) {
    const ggml_tensor * weights = op->src[0];
    const ggml_tensor * activations = op->src[1];
    const Isa & isa = params->use_ref ? scalar : *active_isa();
    const Planes planes = Planes::of(type_of(weights->type), weights->ne[1], weights->ne[0], weights->data);
    const BlockFormat & format = block_formats[planes.type];
    const int64_t n_groups = weights->ne[1] / group_rows;
    const Panels panels = panels_of(isa, rows_of(activations), format.block, planes.n_blocks);
    const ProductPlan plan = plan_of(op);
    const bool own_copy = is_private(activations);
    if (params->ith == 0) {
        forget_plan();   // this thread plans; what it plans after this graph runs is another graph
    }
    if (panels.n_tokens == 0) {
        return;
    }

    char * scratch = plan.scratch->data + (own_copy ? params->ith * scratch_bytes(panels) : 0);
    auto * out = static_cast<float *>(op->data);
    const RowBlock row_block = row_block_of(isa, planes, panels);
    const auto multiply = [&](int64_t first, int64_t last) {
        for (int64_t panel = 0; panel < panels.n_panels; ++panel) {
            isa.multiply[planes.type]({planes.codes + first * planes.n_blocks * format.code_bytes,
                                       planes.scales + first * planes.n_blocks * format.scale_bytes,
                                       last - first,
                                       planes.n_blocks,
                                       panels.at(scratch, panel),
                                       panels.width(panel),
                                       out + panels.first_token(panel) * weights->ne[1] + first * group_rows,
                                       weights->ne[1],
                                       {row_block.ahead(panel, 0), row_block.ahead(panel, 1)},
                                       panel == 0});
        }
    };

    const auto run = [&](int64_t first, int64_t last) {
        for (; first < last; first += row_block.n_groups) {
            multiply(first, std::min(last, first + row_block.n_groups));
        }
    };
    const auto take = [&](int64_t begin) {
        for (int64_t n, first; first = begin + take_units(op, n_groups - begin, params->nth, n), n > 0;) {
            run(first, first + n);
        }
    };

    if (own_copy) {
        if (!plan.reuses) {
            quantize(isa, panels, format.block, planes.n_blocks, activations, scratch, 0, 1);
        }
        run(share_begin(n_groups, params->ith, params->nth), share_begin(n_groups, params->ith + 1, params->nth));
        take(share_begin(n_groups, params->nth, params->nth));
        if (plan.next) {
            fetch_share(plan.next, params->ith, params->nth);
        }
        return;
    }
    if (!plan.reuses) {
        quantize(isa, panels, format.block, planes.n_blocks, activations, scratch, params->ith, params->nth);
        ggml_barrier(params->threadpool);
    }
    take(0);
}

}  // namespace pgl::kernels
