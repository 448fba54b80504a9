// What the kernel tests share: weights of every owned type, and MUL_MAT through ggml's graph in our buffer or in
// ggml's.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "kernels/dispatch.h"
#include "kernels/kernels.h"
#include "kernels/matmul/layout.h"
#include "traits.h"

namespace kernels_case {

constexpr ggml_type types[] = {GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q8_0,
                               GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K};

inline std::vector<const pgl::kernels::Isa *> all_isas() {
    std::vector<const pgl::kernels::Isa *> found;
    for (const char * name : {"scalar", "avx2", "avxvnni", "avx512"}) {
        if (const auto * isa = pgl::kernels::find_isa(name)) {
            found.push_back(isa);
        }
    }
    return found;
}

inline ggml_backend_buffer_type_t our_buffer_type() {
    pgl::kernels::register_backend();
    return ggml_backend_cpu_get_extra_buffer_types().at(0);
}

inline std::vector<float> normal_values(size_t n, unsigned seed, float outliers = 0) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(n);
    for (auto & value : values) {
        value = normal(rng) * (rng() % 100 < 2 ? 1 + outliers : 1);
    }
    return values;
}

/// Rows as a quantiser writes them.
inline std::vector<uint8_t> trained_rows(ggml_type type, int64_t n, int64_t k, unsigned seed) {
    const auto values = normal_values(static_cast<size_t>(n * k), seed);
    std::vector<uint8_t> rows(ggml_row_size(type, k) * static_cast<size_t>(n));
    ggml_quantize_chunk(type, values.data(), rows.data(), 0, n, k, nullptr);
    return rows;
}

/// Offsets of the f16 scales in a block, -1 if there is none.
inline int scale_offset(ggml_type type) {
    return type == GGML_TYPE_Q6_K ? 208 : 0;
}
inline int min_offset(ggml_type type) {
    return type == GGML_TYPE_Q4_1 || type == GGML_TYPE_Q4_K || type == GGML_TYPE_Q5_K ? 2 : -1;
}

/// Any bits for codes and sub-block scales (`fill` < 0: random), f16 scales `d` and `m`.
inline std::vector<uint8_t> crafted_rows(ggml_type type, int64_t n, int64_t k, int fill, float d, float m,
                                         unsigned seed) {
    std::mt19937 rng(seed);
    std::vector<uint8_t> rows(ggml_row_size(type, k) * static_cast<size_t>(n));
    for (auto & byte : rows) {
        byte = static_cast<uint8_t>(fill < 0 ? rng() : static_cast<unsigned>(fill));
    }
    const ggml_fp16_t half_d = ggml_fp32_to_fp16(d), half_m = ggml_fp32_to_fp16(m);
    for (size_t block = 0; block < rows.size(); block += ggml_type_size(type)) {
        std::memcpy(rows.data() + block + scale_offset(type), &half_d, 2);
        if (min_offset(type) >= 0) {
            std::memcpy(rows.data() + block + min_offset(type), &half_m, 2);
        }
    }
    return rows;
}

/// One weight in a buffer, multiplied by rows of activations on a thread pool of its own.
class Product {
  public:
    Product(ggml_type type, int64_t n_rows, int64_t row_length, const std::vector<uint8_t> & rows,
            ggml_backend_buffer_type_t buft, int n_threads = 1)
        : n(n_rows), k(row_length) {
        context = ggml_init({ggml_tensor_overhead() * 2, nullptr, true});
        weight = ggml_new_tensor_2d(context, type, k, n);
        buffer = ggml_backend_alloc_ctx_tensors_from_buft(context, buft);
        ggml_backend_buffer_set_usage(buffer, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        ggml_backend_tensor_set(weight, rows.data(), 0, rows.size());
        backend = ggml_backend_cpu_init();
        ggml_backend_cpu_set_n_threads(backend, n_threads);
        auto params = ggml_threadpool_params_default(n_threads);
        pool = ggml_threadpool_new(&params);
        ggml_backend_cpu_set_threadpool(backend, pool);
    }
    Product(const Product &) = delete;
    ~Product() {
        ggml_backend_free(backend);
        ggml_threadpool_free(pool);
        ggml_backend_buffer_free(buffer);
        ggml_free(context);
    }

    /// x: [m][k] contiguous in rows `stride` floats apart (0 = k). Returns [m][n].
    std::vector<float> operator()(const float * x, int64_t m, int64_t stride = 0) {
        stride = stride ? stride : k;
        ggml_context * graph_context = ggml_init({ggml_tensor_overhead() * 8 + ggml_graph_overhead(), nullptr, true});
        ggml_tensor * whole = ggml_new_tensor_2d(graph_context, GGML_TYPE_F32, stride, m);
        ggml_set_input(whole);
        ggml_tensor * rows = ggml_view_2d(graph_context, whole, k, m, whole->nb[1], 0);
        ggml_tensor * out = ggml_mul_mat(graph_context, weight, rows);
        ggml_cgraph * graph = ggml_new_graph(graph_context);
        ggml_build_forward_expand(graph, out);
        ggml_backend_buffer_t memory = ggml_backend_alloc_ctx_tensors(graph_context, backend);
        ggml_backend_tensor_set(whole, x, 0, ggml_nbytes(whole));
        ggml_backend_graph_compute(backend, graph);
        std::vector<float> result(static_cast<size_t>(m * n));
        ggml_backend_tensor_get(out, result.data(), 0, ggml_nbytes(out));
        ggml_backend_buffer_free(memory);
        ggml_free(graph_context);
        return result;
    }

    const int64_t n, k;
    ggml_tensor * weight;
    ggml_backend_t backend;

  private:
    ggml_context * context;
    ggml_backend_buffer_t buffer;
    ggml_threadpool_t pool;
};

/// Same bits; any NaN equals any NaN.
inline bool same_bits(const float * a, const float * b, size_t n) {
    for (size_t i = 0; i < n; ++i) {
        if (std::memcmp(a + i, b + i, sizeof(float)) != 0 && !(std::isnan(a[i]) && std::isnan(b[i]))) {
            return false;
        }
    }
    return true;
}

}  // namespace kernels_case
