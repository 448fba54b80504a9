// The start-up self-test: the chosen instruction set against the scalar reference, every type, a few shapes.
#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/dispatch.h"
#include "kernels/kernels.h"
#include "kernels/matmul/layout.h"

namespace pgl::kernels {
namespace {

constexpr const char * type_names[n_types] = {"q4_0", "q4_1", "q8_0", "q4_k", "q5_k", "q6_k"};

/// Small deterministic noise; the test must not depend on the library's generators.
struct Noise {
    uint32_t state = 1;
    uint32_t next() { return state = state * 1664525u + 1013904223u, state >> 8; }
};

/// Random GGUF rows with finite scales.
std::vector<uint8_t> random_rows(Type type, int64_t n_rows, int64_t row_length, Noise & noise) {
    const BlockFormat & format = block_formats[type];
    std::vector<uint8_t> rows(static_cast<size_t>(n_rows * (row_length / format.block) * format.block_bytes));
    for (auto & byte : rows) {
        byte = static_cast<uint8_t>(noise.next());
    }
    for (size_t block = 0; block < rows.size(); block += format.block_bytes) {
        // The high byte of each f16 scale: exponents near one.
        uint8_t * d = rows.data() + block + (type == q6_k ? 208 : 0);
        d[1] = static_cast<uint8_t>(0x20 | (d[1] & 0x8f));
        if (type == q4_1 || type == q4_k || type == q5_k) {
            d[3] = static_cast<uint8_t>(0x20 | (d[3] & 0x8f));
        }
    }
    return rows;
}

std::string test(const Isa & isa, Type type, int64_t n_rows, int64_t row_length, int n_tokens) {
    Noise noise;
    const BlockFormat & format = block_formats[type];
    const auto rows = random_rows(type, n_rows, row_length, noise);
    std::vector<uint8_t> packed(rows.size()), back(rows.size());
    pack(type, n_rows, row_length, rows.data(), packed.data(), 0, n_rows / group_rows);
    unpack(type, n_rows, row_length, packed.data(), back.data(), 0, n_rows / group_rows);
    const std::string name = std::string(isa.name) + " " + type_names[type];
    if (rows != back) {
        return name + ": packing is not lossless";
    }
    const Planes planes = Planes::of(type, n_rows, row_length, packed.data());
    std::vector<float> x(static_cast<size_t>(row_length));
    const size_t words =
        static_cast<size_t>(planes.n_blocks * n_tokens * (format.block == 32 ? panel_32::words : panel_256::words));
    std::vector<uint32_t> panel(words), expected_panel(words);
    for (int token = 0; token < n_tokens; ++token) {
        for (size_t i = 0; i < x.size(); ++i) {
            x[i] = static_cast<float>(static_cast<int>(noise.next() & 0xffff) - 0x8000) / 4096.0f;
            // The first half as most activations are, one large and the rest small; the second evenly spread, which is
            // wide.
            if (i < x.size() / 2) {
                x[i] = i % 256 == 0 ? 8.0f : x[i] / 4;
            }
        }
        const auto quantize = format.block == 32 ? &Isa::quantize_32 : &Isa::quantize_256;
        (isa.*quantize)(x.data(), 0, planes.n_blocks, panel.data(), n_tokens, token);
        (scalar.*quantize)(x.data(), 0, planes.n_blocks, expected_panel.data(), n_tokens, token);
    }
    // Starts and sums have each instruction set's own form; codes and scales are the same.
    const bool small = format.block == 32;
    const auto width = static_cast<size_t>(n_tokens);
    const size_t n_codes = static_cast<size_t>(format.block) / 4 * width;
    const size_t scale = (small ? panel_32::scale : panel_256::scale) * width;
    for (size_t at = 0; at < words; at += words / static_cast<size_t>(planes.n_blocks)) {
        const auto same = [&](size_t first, size_t n) {
            return std::equal(panel.begin() + first, panel.begin() + first + n, expected_panel.begin() + first);
        };
        if (!same(at, n_codes) || !same(at + scale, width)) {
            return name + ": activations quantise differently";
        }
    }
    std::vector<float> expected(static_cast<size_t>(n_rows * n_tokens));
    Multiply task = {planes.codes,
                     planes.scales,
                     n_rows / group_rows,
                     planes.n_blocks,
                     expected_panel.data(),
                     1,
                     {n_tokens},
                     expected.data(),
                     n_rows,
                     {0, 0},
                     true};
    scalar.multiply[type](task);
    // Alone, and the same panel as often as one call takes it.
    const int most_panels = small ? 1 : isa.panels_256;
    for (task.n_panels = 1; task.n_panels <= most_panels; task.n_panels += std::max(1, most_panels - 1)) {
        std::vector<uint32_t> panels;
        for (int p = 0; p < task.n_panels; ++p) {
            panels.insert(panels.end(), panel.begin(), panel.end());
            task.n_tokens[p] = n_tokens;
        }
        std::vector<float> out(expected.size() * static_cast<size_t>(task.n_panels));
        task.panel = panels.data();
        task.out = out.data();
        isa.multiply[type](task);
        for (size_t at = 0; at < out.size(); at += expected.size()) {
            if (std::memcmp(out.data() + at, expected.data(), expected.size() * sizeof(float)) != 0) {
                return name + ": products differ";
            }
        }
    }
    return "";
}

}  // namespace

std::string self_test() {
    if (!active_isa()) {
        return "";
    }
    for (const Isa * isa : usable_isas()) {
        for (int type = 0; type < n_types; ++type) {
            for (int n_tokens = 1; n_tokens <= isa->max_tokens; n_tokens += isa->max_tokens - 1) {
                const auto difference = test(*isa, static_cast<Type>(type), 48, 512, n_tokens);
                if (!difference.empty()) {
                    disable_for_all();
                    use_isa(&scalar);  // for weights that are already repacked
                    return difference;
                }
            }
        }
    }
    return "";
}

}  // namespace pgl::kernels
