// Attention on ggml's threads: checks the op, shares its rows or its cells among threads, calls the instruction set.
#include "kernels/attention/attention.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "ggml-cpu-impl.h"

#include "kernels/attention/attention_isa.h"
#include "kernels/dispatch.h"

namespace pgl::kernels {
namespace {

// Rows of one KV head that share one pass over K and V: enough to forget the cost of unpacking them.
constexpr int64_t most_rows = 256;
// Below this many rows a task is not worth splitting by rows: threads share the cells instead.
constexpr int64_t few_rows = 16;

struct Shape {
    int64_t dk, dv, n_tokens, n_heads, n_kv_heads, n_group, n_cells, n_streams;

    explicit Shape(const ggml_tensor * op)
        : dk(op->src[1]->ne[0]), dv(op->src[2]->ne[0]), n_tokens(op->src[0]->ne[1]), n_heads(op->src[0]->ne[2]),
          n_kv_heads(op->src[1]->ne[2]), n_group(n_heads / n_kv_heads), n_cells(op->src[1]->ne[1]),
          n_streams(op->src[0]->ne[3]) {}

    bool shares_cells() const { return n_tokens == 1 || n_tokens * n_group <= few_rows; }
    int64_t tokens_per_task(int n_threads) const {
        if (shares_cells()) {
            return n_tokens;
        }
        int64_t n = std::min(n_tokens, std::max<int64_t>(1, most_rows / n_group));
        const auto n_tasks = [&] { return n_streams * n_kv_heads * ((n_tokens + n - 1) / n); };
        while (n > 1 && n_tasks() < 4 * n_threads && n * n_group > few_rows) {
            n = (n + 1) / 2;
        }
        return n;
    }
};

int64_t round_up(int64_t n, int64_t unit) {
    return (n + unit - 1) / unit * unit;
}

int64_t n_splits(int64_t n_cells) {
    return (n_cells + split_cells - 1) / split_cells;
}

int64_t state_floats(int64_t n_rows, int64_t dv) {
    return 2 * round_up(n_rows, 16) + n_rows * dv;
}

AttentionState state_at(float * memory, int64_t n_rows) {
    const int64_t padded = round_up(n_rows, 16);
    return {memory, memory + padded, memory + 2 * padded};
}

/// wdata: per thread a state, the kernel's scratch and the streams' lengths; then the splits of the one KV head
/// that thread i begins and another finishes.
struct Memory {
    int64_t state_bytes, thread_bytes, slots_bytes;

    Memory(const Shape & shape, int n_threads) {
        const int64_t n_tokens = shape.tokens_per_task(n_threads), n_rows = n_tokens * shape.n_group;
        const auto dk = static_cast<int>(shape.dk), dv = static_cast<int>(shape.dv);
        state_bytes = round_up(state_floats(n_rows, dv) * static_cast<int64_t>(sizeof(float)), 64);
        const auto scratch = static_cast<int64_t>(attention_scratch_bytes(dk, dv, static_cast<int>(n_tokens)));
        const auto lengths = shape.n_streams * static_cast<int64_t>(sizeof(int64_t));
        thread_bytes = state_bytes + round_up(scratch, 64) + round_up(lengths, 64);
        slots_bytes = shape.shares_cells() && n_threads > 1 ? n_splits(shape.n_cells) * state_bytes : 0;
    }
    size_t total(int n_threads) const { return 64 + static_cast<size_t>(n_threads) * (thread_bytes + slots_bytes); }
};

CellType cell_type(ggml_type type) {
    return type == GGML_TYPE_F16 ? CellType::f16 : type == GGML_TYPE_Q8_0 ? CellType::q8_0 : CellType::f32;
}

const AttentionIsa & instruction_set(const ggml_compute_params * params) {
#if defined(__x86_64__)
    if (!params->use_ref && active_isa() && active_isa() == find_isa("avx512")) {
        return attention_avx512;
    }
    if (!params->use_ref && active_isa() && active_isa() != &scalar) {
        return attention_avx2;
    }
#endif
    return attention_scalar;
}

struct Worker {
    const ggml_compute_params * params;
    ggml_tensor * op;
    const Shape shape;
    const Memory memory;
    const AttentionIsa & isa;
    char * base;        // wdata, aligned
    char * own;         // this thread's part of it
    const int64_t n_tokens, n_rows;  // per task

    Worker(const ggml_compute_params * p, ggml_tensor * o)
        : params(p), op(o), shape(o), memory(shape, p->nth), isa(instruction_set(p)),
          base(reinterpret_cast<char *>(round_up(reinterpret_cast<intptr_t>(p->wdata), 64))),
          own(base + p->ith * memory.thread_bytes), n_tokens(shape.tokens_per_task(p->nth)),
          n_rows(n_tokens * shape.n_group) {
        GGML_ASSERT(p->wsize >= memory.total(p->nth));
    }

    AttentionState state() const { return state_at(reinterpret_cast<float *>(own), n_rows); }
    char * scratch() const { return own + memory.state_bytes; }
    int64_t * lengths() const {
        return reinterpret_cast<int64_t *>(own + memory.thread_bytes) - round_up(shape.n_streams, 8);
    }
    AttentionState slot(int64_t thread, int64_t split) const {
        char * slots = base + params->nth * memory.thread_bytes + thread * memory.slots_bytes;
        return state_at(reinterpret_cast<float *>(slots + split * memory.state_bytes), n_rows);
    }

    AttentionRows rows(int64_t stream, int64_t head, int64_t token, int64_t n) const {
        const ggml_tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *mask = op->src[3];
        AttentionRows a{};
        a.q =
            static_cast<const char *>(q->data) + token * q->nb[1] + head * shape.n_group * q->nb[2] + stream * q->nb[3];
        a.q_token_bytes = q->nb[1];
        a.q_head_bytes = q->nb[2];
        a.k = static_cast<const char *>(k->data) + head * k->nb[2] + stream * k->nb[3];
        a.v = static_cast<const char *>(v->data) + head * v->nb[2] + stream * v->nb[3];
        a.k_bytes = k->nb[1];
        a.v_bytes = v->nb[1];
        a.k_type = cell_type(k->type);
        a.v_type = cell_type(v->type);
        if (mask) {
            a.mask = reinterpret_cast<const uint16_t *>(static_cast<const char *>(mask->data) + token * mask->nb[1] +
                                                        stream % mask->ne[3] * mask->nb[3]);
            a.mask_stride = static_cast<int64_t>(mask->nb[1] / sizeof(uint16_t));
        }
        a.n_tokens = static_cast<int>(n);
        a.n_group = static_cast<int>(shape.n_group);
        a.dk = static_cast<int>(shape.dk);
        a.dv = static_cast<int>(shape.dv);
        std::memcpy(&a.scale, op->op_params, sizeof(a.scale));
        return a;
    }

    /// Past the last cell any of the rows sees.
    int64_t length(const AttentionRows & a) const {
        int64_t end = a.mask ? 0 : shape.n_cells;
        for (int t = 0; t < a.n_tokens && a.mask && end < shape.n_cells; ++t) {
            end = std::max(end, isa.valid_end(a.mask + t * a.mask_stride, shape.n_cells));
        }
        return end;
    }

    /// Splits [split, last) in order, from nothing.
    void attend(const AttentionRows & a, int64_t split, int64_t last, AttentionState state) const {
        isa.start(state, a.n_tokens * a.n_group, a.dv);
        for (; split < last; ++split) {
            const int64_t first = split * split_cells;
            isa.attend(a, first, static_cast<int>(std::min<int64_t>(split_cells, a.n_cells - first)), state, scratch());
        }
    }

    void finish(int64_t stream, int64_t head, int64_t token, int64_t n, AttentionState from) const {
        for (int64_t r = 0; r < n * shape.n_group; ++r) {
            const int64_t row = (stream * shape.n_tokens + token + r / shape.n_group) * shape.n_heads +
                                head * shape.n_group + r % shape.n_group;
            float * dst = reinterpret_cast<float *>(static_cast<char *>(op->data) + row * op->nb[1]);
            isa.finish(from.sum[r], from.out + r * shape.dv, static_cast<int>(shape.dv), dst);
        }
    }

    /// Many rows: tasks of (stream, rows, KV head), taken as threads come free, the longest (last) rows first.
    void share_rows() const {
        const int64_t n_ranges = (shape.n_tokens + n_tokens - 1) / n_tokens;
        const int64_t n_tasks = n_ranges * shape.n_streams * shape.n_kv_heads;
        if (params->ith == 0) {
            ggml_threadpool_chunk_set(params->threadpool, params->nth);
        }
        ggml_barrier(params->threadpool);
        for (int64_t i = params->ith; i < n_tasks; i = ggml_threadpool_chunk_add(params->threadpool, 1)) {
            const int64_t head = i % shape.n_kv_heads, stream = i / shape.n_kv_heads % shape.n_streams;
            const int64_t token = (n_ranges - 1 - i / (shape.n_kv_heads * shape.n_streams)) * n_tokens;
            const int64_t n = std::min(n_tokens, shape.n_tokens - token);
            AttentionRows a = rows(stream, head, token, n);
            a.n_cells = length(a);
            attend(a, 0, n_splits(a.n_cells), state());
            finish(stream, head, token, n, state());
        }
    }

    /// Few rows: the splits of all streams and KV heads in one line, cut into equal parts. A KV head cut in two has its
    /// splits kept apart and folded in order, as one thread would have.
    void share_cells() const {
        int64_t n_total = 0;
        for (int64_t stream = 0; stream < shape.n_streams; ++stream) {
            lengths()[stream] = length(rows(stream, 0, 0, n_tokens));
            n_total += shape.n_kv_heads * n_splits(lengths()[stream]);
        }
        const int64_t lo = n_total * params->ith / params->nth, hi = n_total * (params->ith + 1) / params->nth;
        const auto owner = [&](int64_t i) { return ((i + 1) * params->nth - 1) / n_total; };
        bool any_cut = false;
        int64_t cut_stream = -1, cut_head = 0, begin = 0;
        for (int64_t pair = 0; pair < shape.n_streams * shape.n_kv_heads; ++pair) {
            const int64_t stream = pair / shape.n_kv_heads, head = pair % shape.n_kv_heads, end = lengths()[stream];
            const int64_t n = n_splits(end), first = begin;
            begin += n;
            const bool cut = n > 0 && owner(first) != owner(begin - 1);
            any_cut = any_cut || cut;
            if (n == 0 ? pair % params->nth != params->ith : begin <= lo || first >= hi) {
                continue;
            }
            AttentionRows a = rows(stream, head, 0, n_tokens);
            a.n_cells = end;
            if (!cut) {
                attend(a, 0, n, state());
                finish(stream, head, 0, n_tokens, state());
                continue;
            }
            for (int64_t i = std::max(first, lo); i < std::min(begin, hi); ++i) {
                attend(a, i - first, i - first + 1, slot(owner(first), i - first));
            }
            if (owner(first) == params->ith) {
                cut_stream = stream;
                cut_head = head;
            }
        }
        if (!any_cut) {
            return;
        }
        ggml_barrier(params->threadpool);
        if (cut_stream >= 0) {
            for (int64_t split = 1; split < n_splits(lengths()[cut_stream]); ++split) {
                isa.fold(slot(params->ith, 0), slot(params->ith, split), static_cast<int>(n_rows),
                         static_cast<int>(shape.dv));
            }
            finish(cut_stream, cut_head, 0, n_tokens, slot(params->ith, 0));
        }
    }
};

bool plain_rows(const ggml_tensor * t) {
    return t->nb[0] == ggml_type_size(t->type);
}

bool cells_supported(const ggml_tensor * t) {
    const bool type = t->type == GGML_TYPE_F16 || t->type == GGML_TYPE_Q8_0 || t->type == GGML_TYPE_F32;
    return type && plain_rows(t) && t->ne[0] % 16 == 0 && t->ne[0] % ggml_blck_size(t->type) == 0 && t->ne[0] > 0 &&
           t->ne[0] <= max_head_size;
}

}  // namespace

bool attention_supports(const ggml_tensor * op) {
    const ggml_tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *mask = op->src[3], *sinks = op->src[4];
    float scale_bias_softcap[3];
    std::memcpy(scale_bias_softcap, op->op_params, sizeof(scale_bias_softcap));
    if (sinks || scale_bias_softcap[1] != 0.0f || scale_bias_softcap[2] != 0.0f) {
        return false;
    }
    if (q->type != GGML_TYPE_F32 || !plain_rows(q) || !cells_supported(k) || !cells_supported(v)) {
        return false;
    }
    if (k->ne[2] != v->ne[2] || k->ne[1] != v->ne[1] || k->ne[3] != q->ne[3] || v->ne[3] != q->ne[3] ||
        q->ne[2] % k->ne[2] != 0 || k->ne[1] == 0) {
        return false;
    }
    return !mask || (mask->type == GGML_TYPE_F16 && mask->nb[0] == sizeof(uint16_t) && mask->ne[2] == 1 &&
                     mask->ne[0] >= k->ne[1] && mask->ne[1] >= q->ne[1]);
}

size_t attention_work_size(int n_threads, const ggml_tensor * op) {
    return Memory(Shape(op), n_threads).total(n_threads);
}

void attention_compute(const ggml_compute_params * params, ggml_tensor * op) {
    const Worker worker(params, op);
    if (worker.shape.shares_cells()) {
        worker.share_cells();
    } else {
        worker.share_rows();
    }
}

}  // namespace pgl::kernels
