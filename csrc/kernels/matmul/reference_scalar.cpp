// The reference: every product one multiply at a time. Slow and obvious; the SIMD kernels must match it bit for bit.
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/isa.h"
#include "kernels/matmul/layout.h"

namespace pgl::kernels {
namespace {

float half(const uint8_t * bytes) {
    uint16_t bits;
    std::memcpy(&bits, bytes, 2);
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    float value;
    if (exponent == 31) {
        value = mantissa ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
    } else {
        value = exponent ? std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25)
                         : std::ldexp(static_cast<float>(mantissa), -24);
    }
    return bits & 0x8000 ? -value : value;
}

/// The largest magnitude, the first value that has it, and whether all are finite.
struct Extreme {
    float magnitude = 0, value = 0;
    bool finite = true;
};

Extreme extreme(const float * x, int n) {
    Extreme result;
    for (int i = 0; i < n; ++i) {
        result.finite = result.finite && std::isfinite(x[i]);
        if (std::fabs(x[i]) > result.magnitude) {
            result.magnitude = std::fabs(x[i]);
            result.value = x[i];
        }
    }
    return result;
}

// Below this the reciprocal overflows: such a block counts as zero.
constexpr float smallest = 1e-36f;

/// Fills `codes` and returns the scale. A block that holds a NaN or an infinity gets a NaN scale: it must show.
float quantize(const float * x, int n, bool symmetric, int8_t * codes) {
    const Extreme top = extreme(x, n);
    std::memset(codes, 0, n);
    if (!top.finite) {
        return std::numeric_limits<float>::quiet_NaN();
    }
    if (top.magnitude < smallest) {
        return 0;
    }
    const float inverse = symmetric ? 127.0f / top.magnitude : -127.0f / top.value;
    for (int i = 0; i < n; ++i) {
        codes[i] = static_cast<int8_t>(std::nearbyint(x[i] * inverse));
    }
    return symmetric ? top.magnitude / 127.0f : 1.0f / inverse;
}

int sum(const int8_t * codes, int n) {
    int total = 0;
    for (int i = 0; i < n; ++i) {
        total += codes[i];
    }
    return total;
}

uint32_t bits(float value) {
    uint32_t word;
    std::memcpy(&word, &value, 4);
    return word;
}

float value_of(uint32_t word) {
    float value;
    std::memcpy(&value, &word, 4);
    return value;
}

void quantize_32(const float * row, int64_t first, int64_t last, uint32_t * panel, int nt, int token) {
    for (int64_t block = first; block < last; ++block) {
        int8_t codes[32];
        const float scale = quantize(row + block * 32, 32, true, codes);
        uint32_t * out = panel + block * panel_32::words * nt + token;
        for (int i = 0; i < 8; ++i) {
            std::memcpy(out + i * nt, codes + 4 * i, 4);
        }
        out[panel_32::scale * nt] = bits(scale);
        out[panel_32::scaled_sum * nt] = bits(scale * static_cast<float>(sum(codes, 32)));
    }
}

void quantize_256(const float * row, int64_t first, int64_t last, uint32_t * panel, int nt, int token) {
    for (int64_t block = first; block < last; ++block) {
        int8_t codes[256];
        const float scale = quantize(row + block * 256, 256, false, codes);
        uint32_t * out = panel + block * panel_256::words * nt + token;
        for (int i = 0; i < 64; ++i) {
            std::memcpy(out + i * nt, codes + 4 * i, 4);
        }
        out[panel_256::scale * nt] = bits(scale);
    }
}

/// One token of one block of a panel, as plain values. (What else a panel holds is for the SIMD kernels.)
struct Activations {
    const uint32_t * words;
    int nt;

    int code(int k) const { return static_cast<int8_t>(words[k / 4 * nt] >> (k % 4 * 8) & 255); }
    float scale(int word) const { return value_of(words[word * nt]); }
};

/// The weights of one row in one block, unpacked by the byte.
struct Weights {
    Type type;
    const uint8_t * codes;
    const uint8_t * scales;
    int row;

    int code(int k) const {
        const int o = k / 4, byte = 4 * row + k % 4;
        if (type == q8_0) {
            return codes[64 * o + byte] - 128;
        }
        const auto at = [&](int vector) -> int { return codes[64 * vector + byte]; };
        if (type == q6_k) {
            const int unit = o / 16 * 12, sub = o / 4 % 4, i = o % 4;
            return (sub < 3 ? at(unit + 4 * sub + i) & 63
                            : at(unit + i) >> 6 << 4 | at(unit + 4 + i) >> 6 << 2 | at(unit + 8 + i) >> 6) -
                   32;
        }
        const int unit = o / 8 * (type == q5_k ? 5 : 4), i = o % 8;
        const int low = at(unit + i / 2) >> (i % 2 * 4) & 15;
        return type == q5_k ? low | (at(unit + 4) >> i & 1) << 4 : type == q4_0 ? low - 8 : low;
    }
    float d() const { return half(scales + 2 * row); }
    float m() const { return half(scales + 32 + 2 * row); }
    /// Six bits; `which` 0 is the scale, 1 the min of sub-block s of Q4_K and Q5_K.
    int six_bits(int s, int which) const {
        const int low = scales[64 + s / 2 * 32 + 2 * row + 1 - s % 2] >> (4 * which) & 15;
        return low | (scales[192 + s % 4 / 2 * 32 + 2 * row + 1 - s % 2] >> (4 * (s / 4) + 2 * which) & 3) << 4;
    }
    int q6_scale(int s) const { return static_cast<int8_t>(scales[32 + s / 2 * 32 + 2 * row + 1 - s % 2]); }
};

int dot(const Weights & w, const Activations & y, int first, int count) {
    int total = 0;
    for (int k = first; k < first + count; ++k) {
        total += w.code(k) * y.code(k);
    }
    return total;
}

float add_block(float total, const Weights & w, const Activations & y) {
    if (w.type == q4_0 || w.type == q4_1 || w.type == q8_0) {
        total = std::fmaf(static_cast<float>(dot(w, y, 0, 32)) * w.d(), y.scale(panel_32::scale), total);
        return w.type == q4_1 ? std::fmaf(w.m(), y.scale(panel_32::scaled_sum), total) : total;
    }
    int scaled = 0, mins = 0;
    for (int s = 0; s < 16; ++s) {
        const int sub_dot = dot(w, y, 16 * s, 16);
        scaled += sub_dot * (w.type == q6_k ? w.q6_scale(s) : w.six_bits(s / 2, 0));
        for (int k = 16 * s; k < 16 * s + 16; ++k) {
            mins += w.type == q6_k ? 0 : w.six_bits(s / 2, 1) * y.code(k);
        }
    }
    float value = static_cast<float>(scaled) * w.d();
    if (w.type != q6_k) {
        value = std::fmaf(-w.m(), static_cast<float>(mins), value);
    }
    return std::fmaf(value, y.scale(panel_256::scale), total);
}

template <int T> void multiply(const Multiply & task) {
    constexpr auto type = static_cast<Type>(T);
    const BlockFormat & format = block_formats[type];
    const int words = format.block == 32 ? panel_32::words : panel_256::words;
    for (int64_t n = 0; n < task.n_groups * group_rows; ++n) {
        for (int token = 0; token < task.n_tokens[0]; ++token) {
            float total = 0;
            for (int64_t block = 0; block < task.n_blocks; ++block) {
                const int64_t unit = n / group_rows * task.n_blocks + block;
                const Weights weights{type, task.codes + unit * format.code_bytes,
                                      task.scales + unit * format.scale_bytes, static_cast<int>(n % group_rows)};
                total = add_block(total, weights,
                                  {task.panel + block * words * task.n_tokens[0] + token, task.n_tokens[0]});
            }
            task.out[token * task.out_stride + n] = total;
        }
    }
}

}  // namespace

const Isa scalar = {"scalar",
                    4,
                    1,
                    1,
                    quantize_32,
                    quantize_256,
                    {multiply<q4_0>, multiply<q4_1>, multiply<q8_0>, multiply<q4_k>, multiply<q5_k>, multiply<q6_k>}};

}  // namespace pgl::kernels
