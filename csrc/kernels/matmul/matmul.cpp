// The threaded driver of MUL_MAT: quantise the activations into panels, then share the weight rows.
#include "kernels/matmul/matmul.h"

#include <algorithm>

#include "ggml-cpu-impl.h"

#include "kernels/dispatch.h"
#include "kernels/matmul/plan.h"
#include "kernels/matmul/product.h"

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

/// Below this many activations every thread quantises them for itself: cheaper than a barrier.
constexpr int64_t private_limit = 8192;
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
    for (int64_t at = 0; at < std::min(2 * run, far_bytes); at += alignment) {
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
    const Type type = type_of(op->src[0]->type);
    const BlockFormat & format = block_formats[type];
    const int64_t n_blocks = op->src[0]->ne[0] / format.block, n_tokens = rows_of(op->src[1]);
    const Form form = form_of(type, n_blocks * format.code_bytes, n_tokens);
    const Panels panels = Panels::of(*form.isa, n_tokens, format.block, n_blocks);
    plan_product(op, form, format.block, scratch_bytes(panels) * (is_private(op->src[1]) ? n_threads : 1));
}

void matmul_compute(const ggml_compute_params * params, ggml_tensor * op) {
    const ggml_tensor * weights = op->src[0];
    const ggml_tensor * activations = op->src[1];
    const ProductPlan plan = plan_of(op);
    const Isa & isa = params->use_ref ? scalar : *plan.form.isa;
    const Planes planes = Planes::of(type_of(weights->type), weights->ne[1], weights->ne[0], weights->data);
    const BlockFormat & format = block_formats[planes.type];
    const int64_t n_groups = weights->ne[1] / group_rows;
    const Panels panels = Panels::of(isa, rows_of(activations), format.block, planes.n_blocks);
    const bool own_copy = is_private(activations);
    if (params->ith == 0) {
        forget_plan();   // this thread plans; what it plans after this graph runs is another graph
    }
    if (panels.n_tokens == 0) {
        return;
    }

    char * scratch = plan.scratch->data + (own_copy ? params->ith * scratch_bytes(panels) : 0);
    const Product product = {{&isa, plan.form.ahead},        planes,        panels, scratch,
                             static_cast<float *>(op->data), weights->ne[1]};
    const auto take = [&](int64_t begin) {
        for (int64_t n, first; first = begin + take_units(op, n_groups - begin, params->nth, n), n > 0;) {
            multiply_groups(product, first, first + n);
        }
    };

    if (own_copy) {
        if (!plan.reuses) {
            quantize(isa, panels, format.block, planes.n_blocks, activations, scratch, 0, 1);
        }
        multiply_groups(product, share_begin(n_groups, params->ith, params->nth),
                        share_begin(n_groups, params->ith + 1, params->nth));
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
