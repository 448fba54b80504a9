// One FLASH_ATTN_EXT problem for tests and benchmarks: data as llama.cpp lays it out, run by ours, by ggml, in float64.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "ggml-backend-impl.h"
#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "ggml.h"
#include "traits.h"

#include "kernels/attention/attention.h"
#include "kernels/dispatch.h"

namespace attention_case {

/// Sits in front of ggml's extra buffer types and takes FLASH_ATTN_EXT while `on`.
struct Hook : ggml::cpu::extra_buffer_type, ggml::cpu::tensor_traits {
    bool on = false;
    bool supports_op(ggml_backend_dev_t, const ggml_tensor *) override { return false; }
    ggml::cpu::tensor_traits * get_tensor_traits(const ggml_tensor * op) override {
        return on && op->op == GGML_OP_FLASH_ATTN_EXT && pgl::kernels::attention_supports(op) ? this : nullptr;
    }
    bool work_size(int n_threads, const ggml_tensor * op, size_t & size) override {
        size = pgl::kernels::attention_work_size(n_threads, op);
        return true;
    }
    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        pgl::kernels::attention_compute(params, op);
        return true;
    }
};

inline Hook & hook() {
    static Hook the_hook;
    static ggml_backend_buffer_type type = [] {
        ggml_backend_buffer_type value{};
        value.context = static_cast<ggml::cpu::extra_buffer_type *>(&the_hook);
        auto & types = ggml_backend_cpu_get_extra_buffer_types();
        types.insert(types.begin(), &type);
        return value;
    }();
    return the_hook;
}

struct Shape {
    int64_t dk = 64, dv = 64, n_heads = 9, n_kv_heads = 3, n_cells = 256, n_tokens = 1, n_streams = 1;
    ggml_type k_type = GGML_TYPE_F16, v_type = GGML_TYPE_F16;
};

/// Tensors own exactly their bytes, so that a sanitizer sees a read past any end.
struct Case {
    Shape shape;
    std::vector<float> q;  // [stream][token][head][dk], as the graph's projection leaves it
    std::vector<uint8_t> k, v;  // [stream][cell][kv head][d]: a KV cache
    std::vector<uint16_t> mask;  // f16 [stream][token][cell]; empty: none
    float scale;

    /// Seed 0 leaves all values zero.
    explicit Case(const Shape & s, uint32_t seed = 1) : shape(s), scale(1.0f / std::sqrt(static_cast<float>(s.dk))) {
        q.resize(s.n_streams * s.n_tokens * s.n_heads * s.dk);
        k.resize(ggml_row_size(s.k_type, s.dk) * s.n_streams * s.n_cells * s.n_kv_heads);
        v.resize(ggml_row_size(s.v_type, s.dv) * s.n_streams * s.n_cells * s.n_kv_heads);
        if (seed == 0) {
            return;
        }
        std::mt19937 random(seed);
        std::normal_distribution<float> normal;
        for (float & x : q) {
            x = 2.0f * normal(random);
        }
        const auto fill = [&](std::vector<uint8_t> & bytes, ggml_type type, int64_t d) {
            std::vector<float> values(s.n_streams * s.n_cells * s.n_kv_heads * d);
            for (float & x : values) {
                x = normal(random);
            }
            ggml_quantize_chunk(type, values.data(), bytes.data(), 0, values.size() / d, d, nullptr);
        };
        fill(k, s.k_type, s.dk);
        fill(v, s.v_type, s.dv);
    }

    uint16_t & mask_at(int64_t stream, int64_t token, int64_t cell) {
        mask.resize(shape.n_streams * shape.n_tokens * shape.n_cells);
        return mask[(stream * shape.n_tokens + token) * shape.n_cells + cell];
    }
    /// Token t of a stream sees cells [0, n_past + t].
    void mask_causal(int64_t n_past) {
        for (int64_t s = 0; s < shape.n_streams; ++s) {
            for (int64_t t = 0; t < shape.n_tokens; ++t) {
                for (int64_t c = 0; c < shape.n_cells; ++c) {
                    mask_at(s, t, c) = c <= n_past + t ? 0 : 0xfc00;
                }
            }
        }
    }
    uint8_t * cell(std::vector<uint8_t> & cache, int64_t stream, int64_t cell, int64_t head) {
        const bool is_k = &cache == &k;
        const size_t row = ggml_row_size(is_k ? shape.k_type : shape.v_type, is_k ? shape.dk : shape.dv);
        return cache.data() + ((stream * shape.n_cells + cell) * shape.n_kv_heads + head) * row;
    }
    std::vector<double> cell_values(std::vector<uint8_t> & cache, int64_t stream, int64_t c, int64_t head) {
        const bool is_k = &cache == &k;
        const ggml_type type = is_k ? shape.k_type : shape.v_type;
        std::vector<float> x(is_k ? shape.dk : shape.dv);
        const uint8_t * from = cell(cache, stream, c, head);
        if (type == GGML_TYPE_F32) {
            memcpy(x.data(), from, x.size() * sizeof(float));
        } else {
            ggml_get_type_traits(type)->to_float(from, x.data(), static_cast<int64_t>(x.size()));
        }
        return {x.begin(), x.end()};
    }

    /// [stream][token][head][dv] in float64.
    std::vector<double> exact() {
        const Shape & s = shape;
        std::vector<double> out(s.n_streams * s.n_tokens * s.n_heads * s.dv);
        for (int64_t stream = 0; stream < s.n_streams; ++stream) {
            for (int64_t h = 0; h < s.n_heads; ++h) {
                std::vector<std::vector<double>> ks, vs;
                for (int64_t c = 0; c < s.n_cells; ++c) {
                    ks.push_back(cell_values(k, stream, c, h / (s.n_heads / s.n_kv_heads)));
                    vs.push_back(cell_values(v, stream, c, h / (s.n_heads / s.n_kv_heads)));
                }
                for (int64_t t = 0; t < s.n_tokens; ++t) {
                    const int64_t row = (stream * s.n_tokens + t) * s.n_heads + h;
                    std::vector<double> score(s.n_cells);
                    double top = -std::numeric_limits<double>::infinity(), sum = 0;
                    for (int64_t c = 0; c < s.n_cells; ++c) {
                        double dot = 0;
                        for (int64_t d = 0; d < s.dk; ++d) {
                            dot += q[row * s.dk + d] * ks[c][d];
                        }
                        score[c] = dot * scale + (mask.empty() ? 0.0f : ggml_fp16_to_fp32(mask_at(stream, t, c)));
                        top = std::fmax(top, score[c]);
                    }
                    for (int64_t c = 0; c < s.n_cells && std::isfinite(top); ++c) {
                        const double weight = std::exp(score[c] - top);
                        sum += weight;
                        for (int64_t d = 0; d < s.dv; ++d) {
                            out[row * s.dv + d] += weight * vs[c][d];
                        }
                    }
                    for (int64_t d = 0; d < s.dv && sum > 0; ++d) {
                        out[row * s.dv + d] /= sum;
                    }
                }
            }
        }
        return out;
    }
};

/// The graph of a case, with its buffers, ready to run any number of times.
class Graph {
  public:
    explicit Graph(Case & c) {
        const Shape & s = c.shape;
        ctx_ = ggml_init({16 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true});
        const auto cells = [&](std::vector<uint8_t> & bytes, ggml_type type, int64_t d) {
            ggml_tensor * t = ggml_new_tensor_4d(ctx_, type, d, s.n_kv_heads, s.n_cells, s.n_streams);
            t->data = bytes.data();
            return view(t);
        };
        ggml_tensor * q = ggml_new_tensor_4d(ctx_, GGML_TYPE_F32, s.dk, s.n_heads, s.n_tokens, s.n_streams);
        q->data = c.q.data();
        ggml_tensor * mask = nullptr;
        if (!c.mask.empty()) {
            mask = ggml_new_tensor_4d(ctx_, GGML_TYPE_F16, s.n_cells, s.n_tokens, 1, s.n_streams);
            mask->data = c.mask.data();
        }
        op_ = ggml_flash_attn_ext(ctx_, view(q), cells(c.k, s.k_type, s.dk), cells(c.v, s.v_type, s.dv), mask, c.scale,
                                  0.0f, 0.0f);
        out_.assign(ggml_nelements(op_), std::nanf(""));
        op_->data = out_.data();
        graph_ = ggml_new_graph(ctx_);
        ggml_build_forward_expand(graph_, op_);
    }
    Graph(const Graph &) = delete;
    Graph & operator=(const Graph &) = delete;
    ~Graph() {
        if (pool_) {
            ggml_threadpool_free(pool_);
        }
        ggml_free(ctx_);
    }

    ggml_tensor * op() { return op_; }

    void prepare(bool ours, int n_threads) {
        if (pool_ && n_threads_ != n_threads) {
            ggml_threadpool_free(pool_);
            pool_ = nullptr;
        }
        if (!pool_) {
            ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
            params.poll = 0;  // tests run more threads than there are cores
            pool_ = ggml_threadpool_new(&params);
            n_threads_ = n_threads;
        }
        hook().on = ours;
        plan_ = ggml_graph_plan(graph_, n_threads, pool_);
        work_.resize(plan_.work_size);
        plan_.work_data = work_.data();
    }
    const std::vector<float> & run() {
        ggml_graph_compute(graph_, &plan_);
        return out_;
    }

  private:
    ggml_tensor * view(ggml_tensor * t) {
        ggml_tensor * permuted = ggml_permute(ctx_, t, 0, 2, 1, 3);
        permuted->data = t->data;
        return permuted;
    }

    ggml_context * ctx_;
    ggml_tensor * op_;
    ggml_cgraph * graph_;
    ggml_threadpool * pool_ = nullptr;
    int n_threads_ = 0;
    ggml_cplan plan_{};
    std::vector<uint8_t> work_;
    std::vector<float> out_;
};

inline std::vector<float> run(Case & c, bool ours, int n_threads) {
    Graph graph(c);
    graph.prepare(ours, n_threads);
    return graph.run();
}

}  // namespace attention_case
