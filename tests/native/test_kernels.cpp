// MUL_MAT: our kernels against the scalar reference, ggml's generic code and float64; bits independent of neighbours.
#include <limits>

#include "check.h"
#include "kernels_case.h"

extern "C" {
#include "quants.h"
}

using namespace kernels_case;
namespace kernels = pgl::kernels;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

void label(const std::string & what, ggml_type type, const kernels::Isa * isa = nullptr) {
    check::context = what + ", " + ggml_type_name(type) + (isa ? std::string(", ") + isa->name : "");
}

/// Every row alone, in small batches and in a big one, on any number of threads: the same bits.
void rows_ignore_their_neighbours() {
    constexpr int64_t n = 80, m = 40;   // 80: an odd number of row groups
    for (const ggml_type type : types) {
        const int64_t k = ggml_blck_size(type) == 32 ? 576 : 768;
        const auto rows = trained_rows(type, n, k, 1);
        const auto x = normal_values(static_cast<size_t>(m * k), 2, 20);
        for (const auto * isa : all_isas()) {
            kernels::use_isa(isa);
            const bool slow = isa == &kernels::scalar;
            Product one(type, n, k, rows, our_buffer_type());
            const auto expected = one(x.data(), m);
            for (const int n_threads : {1, 2, 3, 8}) {
                label("neighbours, threads " + std::to_string(n_threads), type, isa);
                Product product(type, n, k, rows, our_buffer_type(), n_threads);
                CHECK(same_bits(product(x.data(), m).data(), expected.data(), m * n));
                for (int64_t part = 1; part <= (slow || n_threads > 2 ? 3 : 17); ++part) {
                    const int64_t first = (part * 7) % (m - part);
                    const auto out = product(x.data() + first * k, part);
                    CHECK(same_bits(out.data(), expected.data() + first * n, part * n));
                }
            }
        }
    }
}

/// Every instruction set gives the bits of the reference: trained weights, any bits, extremes.
void simd_equals_scalar() {
    const float huge = 60000, tiny = 6e-8f;
    for (const ggml_type type : types) {
        const int64_t k = ggml_blck_size(type) == 32 ? 224 : 1024;
        constexpr int64_t n = 48, m = 13;
        const std::vector<std::vector<uint8_t>> weights = {
            trained_rows(type, n, k, 3),
            crafted_rows(type, n, k, -1, 0.01f, 0.02f, 4),
            crafted_rows(type, n, k, 0xff, 0.5f, -0.25f, 0),     // largest codes and scales everywhere
            crafted_rows(type, n, k, 0x00, 1, 1, 0),
            crafted_rows(type, n, k, 0x80, -1, 1, 0),            // -128 as an int8 code or scale
            crafted_rows(type, n, k, 0x7f, -huge, huge, 0),
            crafted_rows(type, n, k, -1, tiny, -tiny, 5),        // denormal f16
        };
        auto x = normal_values(static_cast<size_t>(m * k), 6, 100);
        for (int64_t i = 0; i < k; ++i) {
            x[i] = 1;                                            // every activation code 127
            x[k + i] = -1;                                       // and -127
            x[2 * k + i] = 0;
            x[3 * k + i] = i % 2 ? 3e38f : -3e38f;
            x[4 * k + i] *= 1e-38f;                              // the reciprocal would overflow
            x[5 * k + i] *= 1e-30f;
            // Sixteen codes of one sign that add up to 1023, the most whose products are sure to fit 16 bits, and to
            // 1024.
            const float code = i % 16 == 0 ? 127.0f : i % 16 < 15 ? 64.0f : 0.0f;
            x[6 * k + i] = code;
            x[7 * k + i] = -code;
            x[8 * k + i] = code == 0 ? -1 : -code;
            x[9 * k + i] = i / 16 % 2 ? code : -code;
        }
        for (size_t w = 0; w < weights.size(); ++w) {
            kernels::use_isa(&kernels::scalar);
            Product product(type, n, k, weights[w], our_buffer_type(), 2);
            const auto expected = product(x.data(), m);
            for (const auto * isa : all_isas()) {
                label("against scalar, weights " + std::to_string(w), type, isa);
                kernels::use_isa(isa);
                CHECK(same_bits(product(x.data(), m).data(), expected.data(), expected.size()));
            }
        }
    }
}

using VecDot = void (*)(int, float *, size_t, const void *, size_t, const void *, size_t, int);

VecDot generic_dot(ggml_type type) {
    switch (type) {
    case GGML_TYPE_Q4_0:
        return ggml_vec_dot_q4_0_q8_0_generic;
    case GGML_TYPE_Q4_1:
        return ggml_vec_dot_q4_1_q8_1_generic;
    case GGML_TYPE_Q8_0:
        return ggml_vec_dot_q8_0_q8_0_generic;
    case GGML_TYPE_Q4_K:
        return ggml_vec_dot_q4_K_q8_K_generic;
    case GGML_TYPE_Q5_K:
        return ggml_vec_dot_q5_K_q8_K_generic;
    default:
        return ggml_vec_dot_q6_K_q8_K_generic;
    }
}

/// Small integers as activations, largest 127 or 64: they quantise to themselves (or to twice themselves), exactly.
std::vector<float> integer_values(size_t n, size_t block, unsigned seed) {
    std::mt19937 rng(seed);
    std::vector<float> values(n);
    for (size_t i = 0; i < n; ++i) {
        values[i] = i % block == block / 2 ? -127.0f : static_cast<float>(static_cast<int>(rng() % 101) - 50);
    }
    return values;
}

/// Integer sums equal ggml's generic code on the same quantised input, sub-block by sub-block; f32 results within 1e-5.
void integer_sums_equal_ggml() {
    constexpr int64_t n = 32;
    for (const ggml_type type : types) {
        const int64_t k = ggml_blck_size(type);
        const ggml_type_traits_cpu * traits = ggml_get_type_traits_cpu(type);
        const auto x = integer_values(static_cast<size_t>(k), static_cast<size_t>(k), 7);
        std::vector<uint8_t> quantized(ggml_row_size(traits->vec_dot_type, k));
        ggml_get_type_traits_cpu(traits->vec_dot_type)->from_float(x.data(), quantized.data(), k);
        // d = 1, m = 0, one block: the result is the integer sum itself, below 2^24 and so exact in f32 ... unless the
        // sub-block scales are large; then both round, in different orders.
        auto rows = crafted_rows(type, n, k, -1, 1, 0, 8);
        for (size_t row = 0; row < rows.size(); row += ggml_type_size(type)) {
            if (type == GGML_TYPE_Q4_K || type == GGML_TYPE_Q5_K) {
                // One sub-block scale is 1, the others 0: row r looks at sub-block r % 8.
                std::memset(rows.data() + row + 4, 0, 12);
                const size_t s = row / ggml_type_size(type) % 8;
                rows[row + 4 + (s < 4 ? s : s + 4)] = 1;
            } else if (type == GGML_TYPE_Q6_K) {
                std::memset(rows.data() + row + 192, 0, 16);
                rows[row + 192 + row / ggml_type_size(type) % 16] = 1;
            }
        }
        const auto any = crafted_rows(type, n, k, -1, 0.5f, 0.25f, 9);
        for (const auto * isa : all_isas()) {
            label("integer sums", type, isa);
            kernels::use_isa(isa);
            Product exact(type, n, k, rows, our_buffer_type()), rounded(type, n, k, any, our_buffer_type());
            const auto sums = exact(x.data(), 1), values = rounded(x.data(), 1);
            double norm = 0;
            std::vector<float> expected(n);
            for (int64_t row = 0; row < n; ++row) {
                float sum;
                generic_dot(type)(static_cast<int>(k), &sum, 0, rows.data() + row * ggml_type_size(type), 0,
                                  quantized.data(), 0, 1);
                CHECK_EQ(sums[row], sum);
                generic_dot(type)(static_cast<int>(k), &expected[row], 0, any.data() + row * ggml_type_size(type), 0,
                                  quantized.data(), 0, 1);
                norm += static_cast<double>(expected[row]) * expected[row];
            }
            for (int64_t row = 0; row < n; ++row) {
                CHECK_NEAR(values[row], expected[row], 1e-5 * std::sqrt(norm));
            }
        }
    }
}

std::vector<double> exact_product(ggml_type type, int64_t n, int64_t k, const std::vector<uint8_t> & rows,
                                  const std::vector<float> & x, int64_t m) {
    std::vector<float> weights(static_cast<size_t>(n * k));
    ggml_get_type_traits(type)->to_float(rows.data(), weights.data(), n * k);
    std::vector<double> out(static_cast<size_t>(m * n));
    for (int64_t j = 0; j < m; ++j) {
        for (int64_t i = 0; i < n; ++i) {
            for (int64_t l = 0; l < k; ++l) {
                out[j * n + i] += static_cast<double>(weights[i * k + l]) * x[j * k + l];
            }
        }
    }
    return out;
}

double error(const std::vector<float> & out, const std::vector<double> & exact) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < out.size(); ++i) {
        difference += (out[i] - exact[i]) * (out[i] - exact[i]);
        norm += exact[i] * exact[i];
    }
    return difference / norm;
}

/// Against dequantised weights times the original activations in float64: no worse than ggml's own kernels.
void no_less_accurate_than_ggml() {
    for (const ggml_type type : types) {
        for (const float outliers : {0.0f, 30.0f}) {
            constexpr int64_t n = 64, k = 2048, m = 12;
            const auto rows = trained_rows(type, n, k, 10);
            const auto x = normal_values(static_cast<size_t>(m * k), 11, outliers);
            const auto exact = exact_product(type, n, k, rows, x, m);
            Product theirs(type, n, k, rows, ggml_backend_cpu_buffer_type());
            const double their_error = error(theirs(x.data(), m), exact);
            for (const auto * isa : all_isas()) {
                label("accuracy, outliers " + std::to_string(outliers), type, isa);
                kernels::use_isa(isa);
                Product ours(type, n, k, rows, our_buffer_type());
                const double our_error = error(ours(x.data(), m), exact);
                CHECK(our_error <= 1.02 * their_error);
                CHECK(outliers > 0 || our_error <= 5e-4);   // int8 per 256 loses more to outliers, theirs as ours
            }
        }
    }
}

/// A NaN or an infinity shows in every result of its own row and in no other row.
void non_finite_rows_show() {
    constexpr int64_t n = 32, m = 9;
    for (const ggml_type type : types) {
        const int64_t k = 512;
        const auto rows = trained_rows(type, n, k, 12);
        for (const auto * isa : all_isas()) {
            kernels::use_isa(isa);
            Product product(type, n, k, rows, our_buffer_type(), 2);
            auto x = normal_values(static_cast<size_t>(m * k), 13);
            const auto clean = product(x.data(), m);
            for (const float bad : {std::numeric_limits<float>::quiet_NaN(), infinity, -infinity}) {
                label("non-finite", type, isa);
                auto spoiled = x;
                spoiled[4 * k + 77] = bad;
                const auto out = product(spoiled.data(), m);
                CHECK(same_bits(out.data(), clean.data(), 4 * n));
                CHECK(same_bits(out.data() + 5 * n, clean.data() + 5 * n, (m - 5) * n));
                for (int64_t i = 0; i < n; ++i) {
                    CHECK(std::isnan(out[4 * n + i]));
                }
            }
            x.assign(x.size(), 0);
            for (const float value : product(x.data(), m)) {
                CHECK_EQ(value, 0.0f);
            }
        }
    }
}

/// The matrices of Llama-3.1-8B and SmolLM2, a slice of rows each: SIMD and scalar agree, also on rows of padded views.
void model_shapes() {
    struct {
        ggml_type type;
        int64_t n, k;
    } shapes[] = {
        {GGML_TYPE_Q4_K, 48, 4096}, {GGML_TYPE_Q6_K, 16, 14336}, {GGML_TYPE_Q4_K, 32, 14336},
        {GGML_TYPE_Q6_K, 32, 4096}, {GGML_TYPE_Q5_K, 16, 14336}, {GGML_TYPE_Q8_0, 64, 576},
        {GGML_TYPE_Q4_1, 192, 576}, {GGML_TYPE_Q4_1, 64, 1536},  {GGML_TYPE_Q4_0, 16, 4096},
        {GGML_TYPE_Q8_0, 16, 32},   {GGML_TYPE_Q4_1, 16, 32},    {GGML_TYPE_Q6_K, 16, 256},
    };
    for (const auto & shape : shapes) {
        constexpr int64_t m = 7;
        const auto rows = trained_rows(shape.type, shape.n, shape.k, 14);
        const int64_t stride = shape.k + 24;
        const auto padded = normal_values(static_cast<size_t>(m * stride), 15);
        std::vector<float> x;
        for (int64_t j = 0; j < m; ++j) {
            x.insert(x.end(), padded.begin() + j * stride, padded.begin() + j * stride + shape.k);
        }
        Product product(shape.type, shape.n, shape.k, rows, our_buffer_type(), 2);
        kernels::use_isa(&kernels::scalar);
        const auto expected = product(x.data(), m);
        for (const auto * isa : all_isas()) {
            label("shape " + std::to_string(shape.n) + " x " + std::to_string(shape.k), shape.type, isa);
            kernels::use_isa(isa);
            CHECK(same_bits(product(x.data(), m).data(), expected.data(), expected.size()));
            CHECK(same_bits(product(padded.data(), m, stride).data(), expected.data(), expected.size()));
        }
    }
}

}  // namespace

int main() {
    kernels::register_backend();
    const auto * chosen = kernels::active_isa();
    rows_ignore_their_neighbours();
    simd_equals_scalar();
    integer_sums_equal_ggml();
    no_less_accurate_than_ggml();
    non_finite_rows_show();
    model_shapes();
    kernels::use_isa(chosen);
    check::context.clear();
    CHECK_EQ(kernels::self_test(), std::string());
    return check::result("kernels");
}
