// The forms of a product with few tokens: the same bits in each, whichever a measurement chooses.
#include <algorithm>
#include <memory>
#include <thread>

#include "check.h"
#include "kernels/matmul/forms.h"
#include "kernels/matmul/matmul.h"
#include "kernels_case.h"

using namespace kernels_case;
namespace kernels = pgl::kernels;
using kernels::Ahead;
using kernels::Form;

namespace {

constexpr Ahead aheads[] = {Ahead::none, Ahead::near, Ahead::far};

int64_t run_of(ggml_type type, int64_t k) {
    const kernels::BlockFormat & format = kernels::block_formats[kernels::type_of(type)];
    return k / format.block * format.code_bytes;
}

void all_forms_give_the_same_bits() {
    constexpr int64_t n = 48, most = kernels::max_measured_tokens;
    for (const ggml_type type : types) {
        for (const int64_t k : {512, 4096}) {   // short runs and long ones
            Product product(type, n, k, trained_rows(type, n, k, 1), our_buffer_type(), 2);
            const auto x = normal_values(static_cast<size_t>(most * k), 2, 20);
            kernels::use_isa(&kernels::scalar);
            const auto expected = product(x.data(), most);
            for (const auto * isa : all_isas()) {
                for (const Ahead ahead : aheads) {
                    check::context = std::string(ggml_type_name(type)) + ", " + isa->name;
                    for (int64_t m = 1; m <= most; ++m) {
                        kernels::set_form(kernels::type_of(type), run_of(type, k), m, {isa, ahead});
                        const auto out = product(x.data(), m);
                        CHECK(same_bits(out.data(), expected.data(), out.size()));
                    }
                    if (isa == &kernels::scalar) {
                        break;   // it prefetches nothing
                    }
                }
            }
        }
    }
}

/// q, k and v of one source, of two types and two instruction sets: what one quantised is not what the other reads.
void products_of_one_source_may_differ_in_form() {
    constexpr int64_t n = 32, k = 512, m = 5;
    const ggml_type kinds[] = {GGML_TYPE_Q4_K, GGML_TYPE_Q6_K, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K};
    std::vector<std::unique_ptr<Product>> products;
    for (const ggml_type kind : kinds) {
        products.push_back(std::make_unique<Product>(kind, n, k, trained_rows(kind, n, k, 3), our_buffer_type(), 2));
    }
    const auto x = normal_values(k * m, 4);
    for (const auto * one : all_isas()) {
        for (const auto * other : all_isas()) {
            check::context = std::string(one->name) + " and " + other->name;
            for (const ggml_type kind : kinds) {
                kernels::set_form(kernels::type_of(kind), run_of(kind, k), m,
                                  {kind == GGML_TYPE_Q6_K ? other : one, Ahead::far});
            }
            ggml_context * context = ggml_init({ggml_tensor_overhead() * 16 + ggml_graph_overhead(), nullptr, true});
            ggml_tensor * source = ggml_new_tensor_2d(context, GGML_TYPE_F32, k, m);
            ggml_set_input(source);
            ggml_cgraph * graph = ggml_new_graph(context);
            std::vector<ggml_tensor *> outs;
            for (const auto & product : products) {
                outs.push_back(ggml_mul_mat(context, product->weight, source));
                ggml_set_output(outs.back());
                ggml_build_forward_expand(graph, outs.back());
            }
            ggml_backend_t backend = products[0]->backend;
            ggml_backend_buffer_t memory = ggml_backend_alloc_ctx_tensors(context, backend);
            ggml_backend_tensor_set(source, x.data(), 0, ggml_nbytes(source));
            ggml_backend_graph_compute(backend, graph);
            for (size_t w = 0; w < outs.size(); ++w) {
                std::vector<float> out(n * m);
                ggml_backend_tensor_get(outs[w], out.data(), 0, ggml_nbytes(outs[w]));
                CHECK(same_bits(out.data(), (*products[w])(x.data(), m).data(), out.size()));
            }
            ggml_backend_buffer_free(memory);
            ggml_free(context);
        }
    }
}

bool is_candidate(const Form & form) {
    const auto forms = kernels::candidate_forms();
    return std::find(forms.begin(), forms.end(), form) != forms.end();
}

/// A measurement chooses a candidate, once, for its type and kind of rows; a few megabytes tell nothing.
void measuring_chooses_once() {
    constexpr kernels::Type type = kernels::q4_k;
    constexpr int64_t k = 4096, m = 2;
    const int64_t run = run_of(GGML_TYPE_Q4_K, k);
    const std::vector<uint8_t> memory(size_t(40) << 20, 0x11);
    check::context = "measuring";
    kernels::forget_forms();
    const Form rule = kernels::form_of(type, run, m);
    const Form other = {rule.isa, rule.ahead == Ahead::none ? Ahead::far : Ahead::none};
    kernels::measure_forms(type, k, memory.data(), size_t(4) << 20);
    for (int64_t tokens = 1; tokens <= kernels::max_measured_tokens; ++tokens) {
        const Form form = kernels::form_of(type, run, tokens);
        kernels::forget_forms();
        CHECK(form == kernels::form_of(type, run, tokens));   // nothing had been chosen
    }
    kernels::set_form(type, run, m, other);
    kernels::measure_forms(type, k, memory.data(), memory.size());
    CHECK(kernels::form_of(type, run, m) == other);   // given by hand counts as measured, and that is done once
    kernels::forget_forms();
    kernels::measure_forms(type, k, memory.data(), memory.size());
    for (int64_t tokens = 1; tokens <= kernels::max_measured_tokens; ++tokens) {
        CHECK(is_candidate(kernels::form_of(type, run, tokens)));
    }
    CHECK_EQ(kernels::form_of(type, run, 100).isa, kernels::active_isa());
    CHECK_EQ(kernels::form_of(kernels::q6_k, run, 1).isa, kernels::active_isa());
    kernels::forget_forms();
}

/// While other threads load, compute and free.
void measuring_disturbs_nobody() {
    constexpr int64_t n = 4096, k = 2304, m = 3;   // 40 MB at eight bits
    check::context = "measuring among others";
    const auto rows = trained_rows(GGML_TYPE_Q8_0, n, k, 5);
    std::vector<std::thread> engines;
    std::vector<int> wrong(2);
    for (size_t e = 0; e < wrong.size(); ++e) {
        engines.emplace_back([&, e] {
            const auto x = normal_values(k * m, static_cast<unsigned>(6 + e));
            std::vector<float> expected;
            for (int i = 0; i < 3; ++i) {
                Product product(
                    GGML_TYPE_Q8_0, 4 * n, k,
                    [&] {
                        auto all = rows;
                        for (int copy = 1; copy < 4; ++copy) {
                            all.insert(all.end(), rows.begin(), rows.end());
                        }
                        return all;
                    }(),
                    our_buffer_type());
                const auto before = product(x.data(), m);
                kernels::measure_forms();
                const auto after = product(x.data(), m);
                expected = expected.empty() ? before : expected;
                wrong[e] += !same_bits(before.data(), expected.data(), expected.size()) ||
                            !same_bits(after.data(), expected.data(), expected.size());
            }
        });
    }
    for (auto & engine : engines) {
        engine.join();
    }
    CHECK_EQ(wrong[0] + wrong[1], 0);
    kernels::forget_forms();
}

}  // namespace

int main() {
    kernels::register_backend();
    const auto * chosen = kernels::active_isa();
    measuring_chooses_once();
    measuring_disturbs_nobody();
    all_forms_give_the_same_bits();
    products_of_one_source_may_differ_in_form();
    kernels::use_isa(chosen);
    return check::result("kernels_forms");
}
