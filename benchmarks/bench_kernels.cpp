// Times one MUL_MAT on every path of this process: ours per instruction set, ggml plain, ggml repacked.
// Usage: bench_kernels <type> <N> <K> <n_threads> <rounds> <M>...   One line per (path, M): path M best_us median_us
// Weights are several copies, used in turn, so that few tokens read them from memory as a model does.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <random>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "kernels/dispatch.h"
#include "kernels/kernels.h"
#include "traits.h"

namespace {

constexpr size_t working_set = size_t(160) << 20;  // well above the last-level cache

/// With one thread CPU time is immune to neighbours; with more, only the wall tells.
double seconds(int n_threads) {
    timespec t;
    clock_gettime(n_threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

struct Path {
    std::string name;
    const pgl::kernels::Isa * isa = nullptr;
    std::vector<ggml_context *> contexts;
    std::vector<ggml_tensor *> weights;
    std::vector<std::vector<double>> times;  // per M
};

}  // namespace

int main(int argc, char ** argv) {
    if (argc < 7) {
        std::fprintf(stderr, "usage: bench_kernels type N K n_threads rounds M...\n");
        return 2;
    }
    ggml_type type = GGML_TYPE_COUNT;
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const char * name = ggml_type_name(static_cast<ggml_type>(i));
        if (name && std::strcmp(name, argv[1]) == 0) {
            type = static_cast<ggml_type>(i);
        }
    }
    const int64_t n = std::atoll(argv[2]), k = std::atoll(argv[3]);
    const int n_threads = std::atoi(argv[4]), rounds = std::atoi(argv[5]);
    std::vector<int64_t> tokens;
    for (int i = 6; i < argc; ++i) {
        tokens.push_back(std::atoll(argv[i]));
    }
    if (type == GGML_TYPE_COUNT || n <= 0 || k <= 0) {
        std::fprintf(stderr, "bench_kernels: unknown type or empty shape\n");
        return 2;
    }

    ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    pgl::kernels::register_backend();
    const auto & extra = ggml_backend_cpu_get_extra_buffer_types();
    ggml_backend_t backend = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(backend, n_threads);
    auto pool_params = ggml_threadpool_params_default(n_threads);
    ggml_threadpool_t pool = ggml_threadpool_new(&pool_params);
    ggml_backend_cpu_set_threadpool(backend, pool);

    std::mt19937 rng(1);
    std::normal_distribution<float> normal;
    std::vector<float> f32(static_cast<size_t>(n * k));
    for (auto & value : f32) {
        value = normal(rng);
    }
    std::vector<uint8_t> rows(ggml_row_size(type, k) * static_cast<size_t>(n));
    ggml_quantize_chunk(type, f32.data(), rows.data(), 0, n, k, nullptr);
    const int copies = std::max<int>(1, static_cast<int>(working_set / rows.size()));

    std::vector<Path> paths;
    const auto add = [&](const std::string & name, ggml_backend_buffer_type_t buft, const pgl::kernels::Isa * isa) {
        Path path;
        path.name = name;
        path.isa = isa;
        path.times.resize(tokens.size());
        for (int c = 0; c < copies; ++c) {
            ggml_context * context = ggml_init({ggml_tensor_overhead() * 2, nullptr, true});
            ggml_tensor * weight = ggml_new_tensor_2d(context, type, k, n);
            ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(context, buft);
            ggml_backend_buffer_set_usage(buffer, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
            if (buft != ggml_backend_cpu_buffer_type()) {
                ggml_tensor * dummy = ggml_new_tensor_2d(context, GGML_TYPE_F32, k, 1);
                ggml_context * probe = ggml_init({ggml_tensor_overhead() * 4, nullptr, true});
                ggml_tensor * op = ggml_mul_mat(probe, weight, dummy);
                const bool takes = ggml_backend_supports_op(backend, op);
                ggml_free(probe);
                if (!takes) {
                    return;
                }
            }
            ggml_backend_tensor_set(weight, rows.data(), 0, rows.size());
            path.contexts.push_back(context);
            path.weights.push_back(weight);
        }
        paths.push_back(std::move(path));
    };
    // Ours first: the packed bytes are the same for every instruction set, so the copies are shared.
    add("avx512", extra.at(0), pgl::kernels::find_isa("avx512"));
    for (const char * isa : {"avxvnni", "avx2"}) {
        if (pgl::kernels::find_isa(isa) && !paths.empty()) {
            Path path = paths.front();
            path.name = isa;
            path.isa = pgl::kernels::find_isa(isa);
            paths.push_back(path);
        }
    }
    if (!paths.empty() && !paths.front().isa) {
        paths.erase(paths.begin());
    }
    add("ggml", ggml_backend_cpu_buffer_type(), nullptr);
    if (extra.size() > 1) {
        add("ggml_repack", extra.at(1), nullptr);
    }

    for (int round = 0; round < rounds; ++round) {
        for (size_t m = 0; m < tokens.size(); ++m) {
            for (auto & path : paths) {
                if (path.isa) {
                    pgl::kernels::use_isa(path.isa);
                }
                const int calls = std::min<int>(copies, std::max<int>(1, static_cast<int>(64 / tokens[m])));
                ggml_context * context =
                    ggml_init({ggml_tensor_overhead() * 64 + ggml_graph_overhead(), nullptr, true});
                ggml_cgraph * graph = ggml_new_graph(context);
                ggml_tensor * x = ggml_new_tensor_2d(context, GGML_TYPE_F32, k, tokens[m]);
                ggml_set_input(x);
                for (int c = 0; c < std::min(calls, 32); ++c) {
                    const size_t copy = static_cast<size_t>(round * calls + c) % path.weights.size();
                    ggml_build_forward_expand(graph, ggml_mul_mat(context, path.weights[copy], x));
                }
                ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(context, backend);
                ggml_backend_tensor_set(x, f32.data(), 0, ggml_nbytes(x));
                const double start = seconds(n_threads);
                ggml_backend_graph_compute(backend, graph);
                path.times[m].push_back((seconds(n_threads) - start) / ggml_graph_n_nodes(graph));
                ggml_backend_buffer_free(buffer);
                ggml_free(context);
            }
        }
    }
    for (auto & path : paths) {
        for (size_t m = 0; m < tokens.size(); ++m) {
            auto & t = path.times[m];
            std::sort(t.begin(), t.end());
            std::printf("%s %lld %.2f %.2f\n", path.name.c_str(), static_cast<long long>(tokens[m]), t.front() * 1e6,
                        t[t.size() / 2] * 1e6);
        }
    }
    return 0;
}
