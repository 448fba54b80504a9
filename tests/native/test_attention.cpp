// Attention: exact to float32's own error, the same bits in any company, ggml's answer at every edge.
#include <algorithm>
#include <cstring>

#include "attention_case.h"
#include "check.h"

using namespace attention_case;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();
constexpr uint16_t masked = 0xfc00, half_nan = 0x7e00;

std::string name(const Shape & s) {
    std::ostringstream os;
    os << "dk " << s.dk << " dv " << s.dv << " heads " << s.n_heads << "/" << s.n_kv_heads << " cells " << s.n_cells
       << " tokens " << s.n_tokens << " streams " << s.n_streams << " " << ggml_type_name(s.k_type) << "/"
       << ggml_type_name(s.v_type) << " on " << (pgl::kernels::active_isa() ? pgl::kernels::active_isa()->name : "off");
    return os.str();
}

bool same_bits(const float * a, const float * b, size_t n) {
    return std::memcmp(a, b, n * sizeof(float)) == 0;
}

/// Equal bits, or both NaN: the payload of a NaN is nobody's business.
bool same_values(const std::vector<float> & a, const std::vector<float> & b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                      [](float x, float y) { return (std::isnan(x) && std::isnan(y)) || same_bits(&x, &y, 1); });
}

double nmse(const std::vector<float> & got, const std::vector<double> & want) {
    double error = 0, power = 0;
    for (size_t i = 0; i < want.size(); ++i) {
        error += (got[i] - want[i]) * (got[i] - want[i]);
        power += want[i] * want[i];
    }
    return power > 0 ? error / power : error;  // all masked: zeros to the bit
}

/// The instruction sets this machine runs.
std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (const char * isa : {"scalar", "avx2", "avx512"}) {
        if (pgl::kernels::find_isa(isa)) {
            names.emplace_back(isa);
        }
    }
    return names;
}

/// The part of a case that one stream's tokens [first, first + n) make, over a cache of n_cells >= what they see.
/// New cells are masked and hold NaN.
Case part(Case & whole, int64_t stream, int64_t first, int64_t n, int64_t n_cells) {
    Shape s = whole.shape;
    s.n_streams = 1;
    s.n_tokens = n;
    s.n_cells = n_cells;
    Case c(s, 0);
    const auto q = whole.q.begin() + (stream * whole.shape.n_tokens + first) * s.n_heads * s.dk;
    c.q.assign(q, q + n * s.n_heads * s.dk);
    std::fill(c.k.begin(), c.k.end(), uint8_t{0xff});  // NaN as f16, as f32 and as the scale of q8_0
    std::fill(c.v.begin(), c.v.end(), uint8_t{0xff});
    const int64_t kept = std::min(n_cells, whole.shape.n_cells);
    std::memcpy(c.k.data(), whole.cell(whole.k, stream, 0, 0), c.k.size() / n_cells * kept);
    std::memcpy(c.v.data(), whole.cell(whole.v, stream, 0, 0), c.v.size() / n_cells * kept);
    for (int64_t t = 0; t < n; ++t) {
        for (int64_t cell = 0; cell < n_cells; ++cell) {
            c.mask_at(0, t, cell) = cell < kept ? whole.mask_at(stream, first + t, cell) : masked;
        }
    }
    return c;
}

void mask_randomly(Case & c, uint32_t seed) {
    std::mt19937 random(seed);
    for (int64_t s = 0; s < c.shape.n_streams; ++s) {
        for (int64_t t = 0; t < c.shape.n_tokens; ++t) {
            const unsigned keep_of_8 = random() % 9;
            for (int64_t cell = 0; cell < c.shape.n_cells; ++cell) {
                const bool hole = random() % 8 >= keep_of_8 || (cell / 64 + t) % 5 == 1;  // whole blocks too
                c.mask_at(s, t, cell) = hole ? masked : ggml_fp32_to_fp16(static_cast<float>(random() % 4) * -0.5f);
            }
        }
    }
}

void test_accuracy() {
    const Shape shapes[] = {
        {64, 64, 9, 3, 320, 1, 1},    {64, 64, 9, 3, 256, 67, 1}, {128, 128, 32, 8, 700, 1, 1},
        {128, 128, 8, 2, 192, 80, 2}, {80, 80, 4, 4, 130, 5, 1},  {96, 96, 6, 2, 100, 70, 1},
        {256, 256, 4, 1, 576, 3, 2},  {16, 48, 5, 1, 77, 9, 3},   {192, 128, 4, 2, 256, 66, 1},
        {112, 112, 24, 1, 65, 2, 1},  {64, 64, 1, 1, 1, 1, 1},    {32, 32, 40, 2, 600, 1, 4},
    };
    const std::pair<ggml_type, ggml_type> types[] = {{GGML_TYPE_F16, GGML_TYPE_F16},
                                                     {GGML_TYPE_Q8_0, GGML_TYPE_Q8_0},
                                                     {GGML_TYPE_F32, GGML_TYPE_F32},
                                                     {GGML_TYPE_F16, GGML_TYPE_Q8_0}};
    uint32_t seed = 0;
    for (Shape s : shapes) {
        for (const auto & [k_type, v_type] : types) {
            s.k_type = k_type;
            s.v_type = v_type;
            if (s.dk % ggml_blck_size(k_type) != 0 || s.dv % ggml_blck_size(v_type) != 0) {
                continue;
            }
            for (const bool holes : {false, true}) {
                Case c(s, ++seed);
                if (holes) {
                    mask_randomly(c, seed);
                } else if (s.n_tokens > 1) {
                    c.mask_causal(s.n_cells - s.n_tokens);
                }
                check::context = name(s) + (holes ? " holes" : "");
                const std::vector<double> want = c.exact();
                const double ours = nmse(run(c, true, 2), want), theirs = nmse(run(c, false, 2), want);
                CHECK(ours < 3e-13);
                // Where ggml too stays in float32, luck decides between two sums this good.
                CHECK(ours <= 1.02 * theirs + 1e-13);
            }
        }
    }
}

void test_isas_agree() {
    uint32_t seed = 100;
    for (Shape s : {Shape{64, 64, 9, 3, 333, 1, 2}, Shape{96, 96, 6, 2, 257, 31, 1}, Shape{80, 48, 7, 1, 140, 11, 1},
                    Shape{256, 128, 16, 1, 65, 1, 1}}) {
        for (const ggml_type type : {GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_F32}) {
            s.k_type = s.dk % ggml_blck_size(type) == 0 ? type : GGML_TYPE_F16;
            s.v_type = s.dv % ggml_blck_size(type) == 0 ? type : GGML_TYPE_F16;
            Case c(s, ++seed);
            mask_randomly(c, seed);
            pgl::kernels::choose_isa("scalar");
            const std::vector<float> want = run(c, true, 1);
            for (const std::string & isa : isas()) {
                pgl::kernels::choose_isa(isa.c_str());
                check::context = name(s);
                CHECK(same_values(run(c, true, 1), want));
            }
        }
    }
}

/// One prompt of n_tokens in a stream: all at once, token by token, in chunks, padded, among streams, on 1..3 threads.
void test_company(Shape s, bool holes) {
    s.n_cells = 2 * 128 + 90;
    s.n_tokens = 75;
    s.n_streams = 3;
    Case all(s, static_cast<uint32_t>(s.dk + s.n_heads));
    all.mask_causal(s.n_cells - s.n_tokens);
    if (holes) {
        mask_randomly(all, 7);
    }
    check::context = name(s) + (holes ? " holes" : "");
    const std::vector<float> want = run(all, true, 1);
    const int64_t row = s.n_heads * s.dv;
    for (const int n_threads : {2, 3}) {
        CHECK(same_bits(run(all, true, n_threads).data(), want.data(), want.size()));
    }
    for (int64_t stream = 0; stream < s.n_streams; ++stream) {
        const int64_t chunks[] = {1, 2, 7, 64, 75};
        for (const int64_t chunk : chunks) {
            for (int64_t t = chunk == 1 ? 40 * stream % 70 : 0; t < s.n_tokens; t += chunk) {
                const int64_t n = std::min(chunk, s.n_tokens - t);
                const int64_t padding = t % 3 * 50;
                Case c = part(all, stream, t, n, s.n_cells + padding);
                const std::vector<float> got = run(c, true, 1 + static_cast<int>(t % 2));
                CHECK(same_bits(got.data(), want.data() + (stream * s.n_tokens + t) * row, n * row));
                if (chunk == 1 && t % 16 == 15) {
                    t += 7;  // a sample of the single tokens is enough
                }
            }
        }
    }
    if (!holes) {  // a causal token needs no cell past its own
        for (const int64_t t : {0, 10, 74}) {
            Case c = part(all, 1, t, 1, s.n_cells - s.n_tokens + t + 1);
            CHECK(same_bits(run(c, true, 2).data(), want.data() + (s.n_tokens + t) * row, row));
        }
    }
}

/// Decoding streams of different lengths in one step: each as if alone.
void test_decode_together() {
    Shape s{64, 64, 9, 3, 640, 1, 7};
    Case all(s, 21);
    all.mask_causal(0);
    for (int64_t stream = 0; stream < s.n_streams; ++stream) {
        for (int64_t c = 0; c < s.n_cells; ++c) {
            all.mask_at(stream, 0, c) = c < stream * stream * 17 ? 0 : masked;  // stream 0 sees nothing
        }
    }
    const std::vector<float> want = run(all, true, 1);
    for (const int n_threads : {2, 3, 4, 7}) {
        check::context = "decode together on " + std::to_string(n_threads);
        CHECK(same_bits(run(all, true, n_threads).data(), want.data(), want.size()));
    }
    const int64_t row = s.n_heads * s.dv;
    for (int64_t stream = 0; stream < s.n_streams; ++stream) {
        check::context = "decode alone, stream " + std::to_string(stream);
        Case c = part(all, stream, 0, 1, s.n_cells);
        CHECK(same_bits(run(c, true, 3).data(), want.data() + stream * row, row));
    }
    CHECK(std::all_of(want.begin(), want.begin() + row, [](float x) { return x == 0.0f && !std::signbit(x); }));
}

/// What lies in a masked cell is never seen; NaN in a seen one spoils its rows and no other.
void test_nan_and_infinity() {
    for (const int64_t n_tokens : {int64_t{1}, int64_t{40}}) {
        Shape s{64, 64, 4, 2, 200, n_tokens, 1};
        Case c(s, 3);
        c.mask_causal(100);
        const std::vector<float> want = run(c, true, 2);
        const int64_t row = s.n_heads * s.dv;
        for (const bool in_k : {true, false}) {
            for (const uint16_t poison : {half_nan, uint16_t{0x7c00}, uint16_t{0xfc00}}) {
                Case bad = c;
                auto * at = bad.cell(in_k ? bad.k : bad.v, 0, 107, 0);  // seen from token 7 on, by KV head 0
                std::memcpy(at, &poison, sizeof(poison));
                const std::vector<float> got = run(bad, true, 2), theirs = run(bad, false, 2);
                for (int64_t t = 0; t < n_tokens; ++t) {
                    check::context = "poison at token " + std::to_string(t);
                    const int64_t n_clean = t < 7 ? 0 : 2 * s.dv;  // heads 2 and 3 use the other KV head
                    CHECK(same_bits(got.data() + t * row + n_clean, want.data() + t * row + n_clean, row - n_clean));
                    if (t >= 7 && poison == half_nan) {
                        CHECK(std::isnan(got[t * row]));
                        CHECK(std::isnan(theirs[t * row]));
                    }
                    if (t >= 7 && !in_k && poison != half_nan) {
                        CHECK(got[t * row] == (poison == 0x7c00 ? inf : -inf));
                    }
                }
            }
        }
        Case bad = c;  // a NaN query spoils its own head
        bad.q[0] = std::nanf("");
        const std::vector<float> got = run(bad, true, 2);
        CHECK(std::isnan(got[0]) && std::isnan(got[s.dv - 1]));
        CHECK(same_bits(got.data() + s.dv, want.data() + s.dv, want.size() - s.dv));
    }
    Case nothing(Shape{64, 64, 4, 2, 100, 3, 1});
    for (auto & x : (nothing.mask_causal(0), nothing.mask)) {
        x = masked;
    }
    for (const bool ours : {true, false}) {
        const std::vector<float> got = run(nothing, ours, 2);
        CHECK(std::all_of(got.begin(), got.end(), [](float x) { return x == 0.0f; }));
    }
}

/// Extreme scores: one cell takes all, or all share alike.
void test_extremes() {
    Case c(Shape{64, 64, 3, 1, 150, 1, 1}, 5);
    for (const float scale : {0.0f, 1e-30f, 100.0f, -3.0f, 1e6f}) {
        check::context = "scale " + std::to_string(scale);
        c.scale = scale;
        CHECK(nmse(run(c, true, 1), c.exact()) < (std::fabs(scale) > 1 ? 1e-7 : 5e-13));
    }
}

void test_supports() {
    const auto supported = [](Shape s, auto change) {
        Case c(s);
        c.mask_causal(0);
        Graph graph(c);
        change(graph.op());
        return pgl::kernels::attention_supports(graph.op());
    };
    const auto as_is = [](ggml_tensor *) {};
    const auto set_param = [](int i, float value) {
        return [=](ggml_tensor * op) { std::memcpy(op->op_params + i, &value, sizeof(value)); };
    };
    Shape s;
    check::context = "supports";
    CHECK(supported(s, as_is));
    CHECK(!supported(s, set_param(1, 8.0f)));   // ALiBi
    CHECK(!supported(s, set_param(2, 30.0f)));  // softcap
    CHECK(!supported(s, [](ggml_tensor * op) { op->src[4] = op->src[0]; }));  // sinks
    CHECK(!supported(s, [](ggml_tensor * op) { op->src[3]->ne[2] = 3; }));    // a mask per head
    CHECK(!supported(s, [](ggml_tensor * op) { op->src[3]->type = GGML_TYPE_F32; }));
    CHECK(!supported(s, [](ggml_tensor * op) { op->src[0]->type = GGML_TYPE_F16; }));
    CHECK(!supported(s, [](ggml_tensor * op) { op->src[0]->nb[0] = 8; }));
    CHECK(!supported(s, [](ggml_tensor * op) { std::swap(op->src[2]->nb[0], op->src[2]->nb[1]); }));  // V transposed
    CHECK(!supported(s, [](ggml_tensor * op) { op->src[1]->type = GGML_TYPE_BF16; }));
    CHECK(!supported(s, [](ggml_tensor * op) { op->src[2]->type = GGML_TYPE_Q4_0; }));
    for (const int64_t d : {40, 72, 272, 576}) {
        s.dk = s.dv = d;
        CHECK(!supported(s, as_is));
    }
}

}  // namespace

int main() {
    test_isas_agree();
    pgl::kernels::choose_isa(nullptr);
    test_supports();
    for (const std::string & isa : isas()) {
        if (isa != "scalar") {  // agrees bit for bit, and is slow
            pgl::kernels::choose_isa(isa.c_str());
            test_company({64, 64, 9, 3}, false);
            test_company({128, 128, 8, 2}, true);
            test_company({96, 96, 20, 1, 0, 0, 0, GGML_TYPE_Q8_0, GGML_TYPE_Q8_0}, false);
            test_decode_together();
            test_nan_and_infinity();
        }
    }
    pgl::kernels::choose_isa(nullptr);
    test_accuracy();
    test_extremes();
    check::context.clear();
    return check::result("test_attention");
}
