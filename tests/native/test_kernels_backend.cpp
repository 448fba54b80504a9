// The buffer type: what it takes, what it refuses, and that weights come back as they went in.
#include <memory>
#include <thread>

#include "check.h"
#include "kernels_case.h"

using namespace kernels_case;
namespace kernels = pgl::kernels;

namespace {

struct Shape {
    ggml_type type;
    int64_t k, n, experts;
    ggml_type input;
    ggml_op op;
    bool taken;
};

/// Asks as the loader does: a weight in a zero-size buffer of ours, no data.
bool takes(const Shape & shape) {
    ggml_context * context = ggml_init({ggml_tensor_overhead() * 8, nullptr, true});
    ggml_tensor * weight = ggml_new_tensor_3d(context, shape.type, shape.k, shape.n, shape.experts);
    ggml_tensor * op = nullptr;
    if (shape.op == GGML_OP_GET_ROWS) {
        op = ggml_get_rows(context, weight, ggml_new_tensor_1d(context, GGML_TYPE_I32, 4));
    } else {
        op = ggml_mul_mat(context, weight, ggml_new_tensor_3d(context, shape.input, shape.k, 512, shape.experts));
    }
    weight->buffer = ggml_backend_buft_alloc_buffer(our_buffer_type(), 0);
    ggml_backend_t backend = ggml_backend_cpu_init();
    const bool result = ggml_backend_supports_op(backend, op);
    ggml_backend_free(backend);
    ggml_backend_buffer_free(weight->buffer);
    ggml_free(context);
    return result;
}

void supports_what_it_accelerates() {
    const Shape shapes[] = {
        {GGML_TYPE_Q4_K, 4096, 14336, 1, GGML_TYPE_F32, GGML_OP_MUL_MAT, true},
        {GGML_TYPE_Q6_K, 4096, 128256, 1, GGML_TYPE_F32, GGML_OP_MUL_MAT, true},
        {GGML_TYPE_Q5_K, 256, 16, 1, GGML_TYPE_F32, GGML_OP_MUL_MAT, true},
        {GGML_TYPE_Q4_1, 576, 192, 1, GGML_TYPE_F32, GGML_OP_MUL_MAT, true},
        {GGML_TYPE_Q4_0, 32, 16, 1, GGML_TYPE_F32, GGML_OP_MUL_MAT, true},
        {GGML_TYPE_Q8_0, 576, 49152, 1, GGML_TYPE_F32, GGML_OP_MUL_MAT, true},
        {GGML_TYPE_Q4_K, 256, 24, 1, GGML_TYPE_F32, GGML_OP_MUL_MAT, false},     // not whole groups of 16 rows
        {GGML_TYPE_Q4_K, 256, 16, 4, GGML_TYPE_F32, GGML_OP_MUL_MAT, false},     // not a matrix
        {GGML_TYPE_Q8_0, 256, 16, 1, GGML_TYPE_F16, GGML_OP_MUL_MAT, false},
        {GGML_TYPE_Q5_0, 256, 16, 1, GGML_TYPE_F32, GGML_OP_MUL_MAT, false},
        {GGML_TYPE_F16, 256, 16, 1, GGML_TYPE_F32, GGML_OP_MUL_MAT, false},
        {GGML_TYPE_Q4_K, 256, 16, 1, GGML_TYPE_F32, GGML_OP_GET_ROWS, false},
    };
    for (const auto & shape : shapes) {
        check::context =
            std::string(ggml_type_name(shape.type)) + " " + std::to_string(shape.n) + " x " + std::to_string(shape.k);
        CHECK_EQ(takes(shape), shape.taken);
    }
    kernels::set_enabled(false);
    CHECK(!takes(shapes[0]));
    kernels::set_enabled(true);
    CHECK(takes(shapes[0]));
}

void weights_come_back() {
    for (const ggml_type type : types) {
        check::context = ggml_type_name(type);
        constexpr int64_t n = 2048, k = 1536;   // large enough for several packing threads
        const auto rows = crafted_rows(type, n, k, -1, 0.3f, -0.7f, 1);
        Product product(type, n, k, rows, our_buffer_type());
        CHECK_EQ(reinterpret_cast<uintptr_t>(product.weight->data) % 64, uintptr_t(0));
        CHECK(std::memcmp(product.weight->data, rows.data(), rows.size()) != 0);
        std::vector<uint8_t> back(rows.size());
        ggml_backend_tensor_get(product.weight, back.data(), 0, back.size());
        CHECK(back == rows);
        std::vector<uint8_t> part(1000);
        ggml_backend_tensor_get(product.weight, part.data(), 4321, part.size());
        CHECK(std::memcmp(part.data(), rows.data() + 4321, part.size()) == 0);
    }
}

/// Batches of matrices as one src1 of three dimensions, the rows of a permuted tensor.
void three_dimensional_input() {
    constexpr int64_t n = 32, k = 512, heads = 3, m = 5;
    const auto rows = trained_rows(GGML_TYPE_Q4_K, n, k, 1);
    Product product(GGML_TYPE_Q4_K, n, k, rows, our_buffer_type(), 2);
    const auto x = normal_values(k * heads * m, 2);
    const auto expected = product(x.data(), heads * m);   // row = token * heads + head
    ggml_context * context = ggml_init({ggml_tensor_overhead() * 8 + ggml_graph_overhead(), nullptr, true});
    ggml_tensor * whole = ggml_new_tensor_3d(context, GGML_TYPE_F32, k, heads, m);
    ggml_set_input(whole);
    ggml_tensor * out =
        ggml_mul_mat(context, product.weight, ggml_permute(context, whole, 0, 2, 1, 3));   // [k, m, heads]
    ggml_cgraph * graph = ggml_new_graph(context);
    ggml_build_forward_expand(graph, out);
    ggml_backend_buffer_t memory = ggml_backend_alloc_ctx_tensors(context, product.backend);
    ggml_backend_tensor_set(whole, x.data(), 0, ggml_nbytes(whole));
    ggml_backend_graph_compute(product.backend, graph);
    std::vector<float> result(n * heads * m);
    ggml_backend_tensor_get(out, result.data(), 0, ggml_nbytes(out));
    for (int64_t head = 0; head < heads; ++head) {
        for (int64_t token = 0; token < m; ++token) {
            CHECK(same_bits(result.data() + (head * m + token) * n, expected.data() + (token * heads + head) * n, n));
        }
    }
    ggml_backend_buffer_free(memory);
    ggml_free(context);
}

/// Products that share their activations, computed again and again with new data in the same tensors.
void shared_activations_are_never_stale() {
    constexpr int64_t n = 64, k = 512;
    const ggml_type kinds[] = {GGML_TYPE_Q4_K, GGML_TYPE_Q6_K, GGML_TYPE_Q8_0, GGML_TYPE_Q4_1, GGML_TYPE_Q4_K};
    constexpr int n_weights = 5;
    for (const int n_threads : {1, 2, 3}) {
        std::vector<std::unique_ptr<Product>> products;
        for (int w = 0; w < n_weights; ++w) {
            products.push_back(std::make_unique<Product>(kinds[w], n, k, trained_rows(kinds[w], n, k, 20 + w),
                                                         our_buffer_type(), n_threads));
        }
        for (const int64_t m : {1, 3, 40}) {
            check::context = "shared, tokens " + std::to_string(m) + ", threads " + std::to_string(n_threads);
            ggml_context * context =
                ggml_init({ggml_tensor_overhead() * 32 + ggml_graph_overhead() * 2, nullptr, true});
            ggml_tensor * x = ggml_new_tensor_2d(context, GGML_TYPE_F32, k, m);
            ggml_tensor * z = ggml_scale(context, x, 3);
            ggml_cgraph * graph = ggml_new_graph(context);
            std::vector<ggml_tensor *> outs;
            for (int w = 0; w < n_weights; ++w) {   // x is used, then z, then x again
                outs.push_back(ggml_mul_mat(context, products[w]->weight, w == 3 ? z : x));
                ggml_build_forward_expand(graph, outs.back());
                ggml_build_forward_expand(graph, ggml_silu(context, outs.back()));
            }
            ggml_backend_t backend = products[0]->backend;
            ggml_backend_buffer_t memory = ggml_backend_alloc_ctx_tensors(context, backend);
            for (unsigned round = 0; round < 3; ++round) {
                const auto values = normal_values(static_cast<size_t>(k * m), 30 + round);
                ggml_backend_tensor_set(x, values.data(), 0, ggml_nbytes(x));
                ggml_backend_graph_compute(backend, graph);
                for (int w = 0; w < n_weights; ++w) {
                    std::vector<float> out(n * m), input = values;
                    for (auto & value : input) {
                        value *= w == 3 ? 3 : 1;
                    }
                    ggml_backend_tensor_get(outs[w], out.data(), 0, ggml_nbytes(outs[w]));
                    CHECK(same_bits(out.data(), (*products[w])(input.data(), m).data(), out.size()));
                }
            }
            ggml_backend_buffer_free(memory);
            ggml_free(context);
        }
    }
}

/// A pass that is stopped before its first product leaves a plan, and its tensors may be freed. A sanitizer sees a
/// later pass that still looks at them.
void a_plan_that_was_never_computed_is_forgotten() {
    constexpr int64_t n = 64, k = 512;
    Product product(GGML_TYPE_Q4_K, n, k, trained_rows(GGML_TYPE_Q4_K, n, k, 60), our_buffer_type());
    const auto x = normal_values(k, 61);
    const auto expected = product(x.data(), 1);
    for (int round = 0; round < 8; ++round) {
        ggml_context * context = ggml_init({ggml_tensor_overhead() * 8 + ggml_graph_overhead(), nullptr, true});
        ggml_tensor * input = ggml_new_tensor_2d(context, GGML_TYPE_F32, k, 1);
        ggml_cgraph * graph = ggml_new_graph(context);
        ggml_build_forward_expand(graph, ggml_mul_mat(context, product.weight, input));
        ggml_graph_plan(graph, 1, nullptr);
        ggml_free(context);
        kernels::begin_pass();
        CHECK(same_bits(product(x.data(), 1).data(), expected.data(), expected.size()));
    }
}

/// Two graphs at once on two threads, as two engines run them: each has its own scratch.
void engines_do_not_share_scratch() {
    constexpr int64_t n = 32, k = 512, m = 33;
    std::vector<std::thread> engines;
    std::vector<int> wrong(2);
    for (unsigned e = 0; e < 2; ++e) {
        engines.emplace_back([e, &wrong] {
            const auto rows = trained_rows(GGML_TYPE_Q5_K, n, k, 40 + e);
            Product product(GGML_TYPE_Q5_K, n, k, rows, our_buffer_type(), 2);
            const auto x = normal_values(k * m, 50 + e);
            const auto expected = product(x.data(), m);
            for (int i = 0; i < 20; ++i) {
                wrong[e] += !same_bits(product(x.data(), m).data(), expected.data(), expected.size());
            }
        });
    }
    for (auto & engine : engines) {
        engine.join();
    }
    CHECK_EQ(wrong[0] + wrong[1], 0);
}

void reference_flag_gives_the_same_bits() {
    constexpr int64_t n = 32, k = 512, m = 3;
    Product product(GGML_TYPE_Q6_K, n, k, trained_rows(GGML_TYPE_Q6_K, n, k, 1), our_buffer_type(), 2);
    const auto x = normal_values(k * m, 2);
    const auto expected = product(x.data(), m);
    ggml_backend_cpu_set_use_ref(product.backend, true);
    CHECK(same_bits(product(x.data(), m).data(), expected.data(), expected.size()));
}

void registers_once() {
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
        threads.emplace_back([] { kernels::register_backend(); });
    }
    for (auto & thread : threads) {
        thread.join();
    }
    int count = 0;
    for (auto * buft : ggml_backend_cpu_get_extra_buffer_types()) {
        count += buft == our_buffer_type();
    }
    CHECK_EQ(count, 1);
    CHECK_EQ(std::string(ggml_backend_buft_name(our_buffer_type())), std::string("CPU_POLARGRID"));
}

/// A graph's attention reaches our kernel without a hook of the tests: the registered buffer type takes it.
void attention_is_registered() {
    ggml_context * context = ggml_init({ggml_tensor_overhead() * 8, nullptr, true});
    ggml_tensor * q = ggml_new_tensor_3d(context, GGML_TYPE_F32, 64, 1, 9);
    ggml_tensor * k = ggml_new_tensor_3d(context, GGML_TYPE_F16, 64, 256, 3);
    ggml_tensor * v = ggml_new_tensor_3d(context, GGML_TYPE_F16, 64, 256, 3);
    const ggml_tensor * op = ggml_flash_attn_ext(context, q, k, v, nullptr, 0.125f, 0, 0);
    auto * ours = static_cast<ggml::cpu::extra_buffer_type *>(our_buffer_type()->context);
    CHECK(ours->get_tensor_traits(op) != nullptr);
    ggml_free(context);
}

void names_choose() {
    using namespace kernels;
    const Isa * chosen = active_isa();
    choose_isa(nullptr);
    const Isa * best = active_isa();
    choose_isa("off");
    CHECK_EQ(std::string(isa()), std::string("off"));
    choose_isa("scalar");
    CHECK_EQ(std::string(isa()), std::string("scalar"));
    for (const char * wish : {"", "sse9"}) {
        choose_isa(wish);   // not a name: the best there is
        CHECK(active_isa() == best);
    }
    use_isa(chosen);
}

}  // namespace

int main() {
    registers_once();
    attention_is_registered();
    supports_what_it_accelerates();
    weights_come_back();
    three_dimensional_input();
    shared_activations_are_never_stale();
    a_plan_that_was_never_computed_is_forgotten();
    engines_do_not_share_scratch();
    reference_flag_gives_the_same_bits();
    names_choose();
    return check::result("kernels_backend");
}
