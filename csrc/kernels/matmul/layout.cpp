// Packing of GGUF blocks into the planes of layout.h, and back.
#include "kernels/matmul/layout.h"

#include <cstring>

namespace pgl::kernels {
namespace {

constexpr int vector_bytes = group_rows * 4;

uint32_t load32(const uint8_t * bytes) {
    uint32_t word;
    std::memcpy(&word, bytes, 4);
    return word;
}

void store32(uint8_t * bytes, uint32_t word) {
    std::memcpy(bytes, &word, 4);
}

// GGUF block -> one byte per weight, in k order; and back.

void nibbles_32(const uint8_t * qs, uint8_t * codes) {
    for (int l = 0; l < 16; ++l) {
        codes[l] = qs[l] & 15;
        codes[l + 16] = qs[l] >> 4;
    }
}

void join_nibbles_32(const uint8_t * codes, uint8_t * qs) {
    for (int l = 0; l < 16; ++l) {
        qs[l] = static_cast<uint8_t>(codes[l] | codes[l + 16] << 4);
    }
}

void nibbles_256(const uint8_t * qs, uint8_t * codes) {
    for (int part = 0; part < 4; ++part) {
        for (int l = 0; l < 32; ++l) {
            codes[64 * part + l] = qs[32 * part + l] & 15;
            codes[64 * part + 32 + l] = qs[32 * part + l] >> 4;
        }
    }
}

void join_nibbles_256(const uint8_t * codes, uint8_t * qs) {
    for (int part = 0; part < 4; ++part) {
        for (int l = 0; l < 32; ++l) {
            qs[32 * part + l] =
                static_cast<uint8_t>((codes[64 * part + l] & 15) | (codes[64 * part + 32 + l] & 15) << 4);
        }
    }
}

constexpr int k_scales = 4, k_high = 16, q4_k_codes = 16, q5_k_codes = 48;  // offsets inside Q4_K and Q5_K blocks
constexpr int q6_k_high = 128, q6_k_scales = 192, q6_k_d = 208;

template <Type type> void split(const uint8_t * block, uint8_t * codes) {
    switch (type) {
    case q4_0:
        nibbles_32(block + 2, codes);
        break;
    case q4_1:
        nibbles_32(block + 4, codes);
        break;
    case q8_0:
        for (int l = 0; l < 32; ++l) {
            codes[l] = block[2 + l] ^ 0x80;
        }
        break;
    case q4_k:
        nibbles_256(block + q4_k_codes, codes);
        break;
    case q5_k:
        nibbles_256(block + q5_k_codes, codes);
        for (int s = 0; s < 8; ++s) {
            for (int l = 0; l < 32; ++l) {
                codes[32 * s + l] |= static_cast<uint8_t>((block[k_high + l] >> s & 1) << 4);
            }
        }
        break;
    case q6_k:
        for (int half = 0; half < 2; ++half) {
            const uint8_t * low = block + 64 * half;
            const uint8_t * high = block + q6_k_high + 32 * half;
            uint8_t * out = codes + 128 * half;
            for (int l = 0; l < 32; ++l) {
                out[l] = static_cast<uint8_t>((low[l] & 15) | (high[l] & 3) << 4);
                out[l + 32] = static_cast<uint8_t>((low[l + 32] & 15) | (high[l] >> 2 & 3) << 4);
                out[l + 64] = static_cast<uint8_t>(low[l] >> 4 | (high[l] >> 4 & 3) << 4);
                out[l + 96] = static_cast<uint8_t>(low[l + 32] >> 4 | (high[l] >> 6) << 4);
            }
        }
        break;
    case n_types:
        break;
    }
}

template <Type type> void join(const uint8_t * codes, uint8_t * block) {
    switch (type) {
    case q4_0:
        join_nibbles_32(codes, block + 2);
        break;
    case q4_1:
        join_nibbles_32(codes, block + 4);
        break;
    case q8_0:
        for (int l = 0; l < 32; ++l) {
            block[2 + l] = codes[l] ^ 0x80;
        }
        break;
    case q4_k:
        join_nibbles_256(codes, block + q4_k_codes);
        break;
    case q5_k:
        join_nibbles_256(codes, block + q5_k_codes);
        for (int l = 0; l < 32; ++l) {
            int bits = 0;
            for (int s = 0; s < 8; ++s) {
                bits |= (codes[32 * s + l] >> 4 & 1) << s;
            }
            block[k_high + l] = static_cast<uint8_t>(bits);
        }
        break;
    case q6_k:
        for (int half = 0; half < 2; ++half) {
            const uint8_t * in = codes + 128 * half;
            for (int l = 0; l < 32; ++l) {
                block[64 * half + l] = static_cast<uint8_t>((in[l] & 15) | (in[l + 64] & 15) << 4);
                block[64 * half + 32 + l] = static_cast<uint8_t>((in[l + 32] & 15) | (in[l + 96] & 15) << 4);
                block[q6_k_high + 32 * half + l] = static_cast<uint8_t>(in[l] >> 4 | in[l + 32] >> 4 << 2 |
                                                                        in[l + 64] >> 4 << 4 | in[l + 96] >> 4 << 6);
            }
        }
        break;
    case n_types:
        break;
    }
}

// Codes of one row <-> its 4-byte column in the vectors of a group. `plane` points at that row in the first vector.

void put(uint8_t * plane, int vector, uint32_t word) {
    store32(plane + vector * vector_bytes, word);
}

uint32_t get(const uint8_t * plane, int vector) {
    return load32(plane + vector * vector_bytes);
}

constexpr uint32_t nibbles = 0x0f0f0f0fu, pairs = 0x03030303u, bits = 0x01010101u;

template <Type type> void put_codes(const uint8_t * codes, uint8_t * plane) {
    constexpr int n = block_formats[type].block / 4;
    const auto code = [codes](int operand) { return load32(codes + 4 * operand); };
    if constexpr (type == q8_0) {
        for (int o = 0; o < n; ++o) {
            put(plane, o, code(o));
        }
    } else if constexpr (type == q5_k) {
        for (int unit = 0; unit < n; unit += 8, plane += 5 * vector_bytes) {
            uint32_t high = 0;
            for (int o = 0; o < 8; ++o) {
                high |= (code(unit + o) >> 4 & bits) << o;
            }
            for (int o = 0; o < 8; o += 2) {
                put(plane, o / 2, (code(unit + o) & nibbles) | (code(unit + o + 1) & nibbles) << 4);
            }
            put(plane, 4, high);
        }
    } else if constexpr (type == q6_k) {
        for (int unit = 0; unit < n; unit += 16, plane += 12 * vector_bytes) {
            for (int o = 0; o < 4; ++o) {
                const uint32_t last = code(unit + 12 + o);
                for (int s = 0; s < 3; ++s) {
                    put(plane, 4 * s + o, code(unit + 4 * s + o) | (last >> (4 - 2 * s) & pairs) << 6);
                }
            }
        }
    } else {
        for (int o = 0; o < n; o += 2) {
            put(plane, o / 2, code(o) | code(o + 1) << 4);
        }
    }
}

template <Type type> void get_codes(const uint8_t * plane, uint8_t * codes) {
    constexpr int n = block_formats[type].block / 4;
    const auto set = [codes](int operand, uint32_t word) { store32(codes + 4 * operand, word); };
    if constexpr (type == q8_0) {
        for (int o = 0; o < n; ++o) {
            set(o, get(plane, o));
        }
    } else if constexpr (type == q5_k) {
        for (int unit = 0; unit < n; unit += 8, plane += 5 * vector_bytes) {
            for (int o = 0; o < 8; ++o) {
                set(unit + o, (get(plane, o / 2) >> (o % 2 * 4) & nibbles) | (get(plane, 4) >> o & bits) << 4);
            }
        }
    } else if constexpr (type == q6_k) {
        for (int unit = 0; unit < n; unit += 16, plane += 12 * vector_bytes) {
            for (int o = 0; o < 4; ++o) {
                uint32_t last = 0;
                for (int s = 0; s < 3; ++s) {
                    const uint32_t word = get(plane, 4 * s + o);
                    set(unit + 4 * s + o, word & 0x3f3f3f3fu);
                    last |= (word >> 6 & pairs) << (4 - 2 * s);
                }
                set(unit + 12 + o, last);
            }
        }
    } else {
        for (int o = 0; o < n; ++o) {
            set(o, get(plane, o / 2) >> (o % 2 * 4) & nibbles);
        }
    }
}

// Scales. Within a block of 16 rows: f16 d[16], then what the type adds.

// Two sub-blocks side by side in every row, the odd one first: the kernels take their scales as pairs of that order.
// Q4_K, Q5_K: 4 pairs x 16 rows of bytes sc | m << 4, then 2 pairs x 16 rows of high bits. Q6_K: 8 pairs x 16 rows of
// int8.
constexpr int k_low = 64, k_high_pairs = 192;

constexpr int pair_at(int sub, int row) {
    return sub / 2 * 2 * group_rows + 2 * row + 1 - sub % 2;
}

void put_scales(Type type, const uint8_t * block, uint8_t * plane, int row) {
    if (type == q6_k) {
        std::memcpy(plane + 2 * row, block + q6_k_d, 2);
        for (int s = 0; s < 16; ++s) {
            plane[32 + pair_at(s, row)] = block[q6_k_scales + s];
        }
        return;
    }
    std::memcpy(plane + 2 * row, block, 2);
    if (type == q4_0 || type == q8_0) {
        return;
    }
    std::memcpy(plane + 32 + 2 * row, block + 2, 2);
    if (type == q4_1) {
        return;
    }
    const uint8_t * q = block + k_scales;
    for (int s = 0; s < 4; ++s) {
        // GGUF keeps the 6 bits of 0..3 whole and spreads those of 4..7: nibbles in q[8..11], high pairs in q[0..7].
        plane[k_low + pair_at(s, row)] = static_cast<uint8_t>((q[s] & 15) | (q[s + 4] & 15) << 4);
        plane[k_low + pair_at(s + 4, row)] = q[s + 8];
        plane[k_high_pairs + pair_at(s, row)] =
            static_cast<uint8_t>((q[s] >> 4 & 3) | (q[s + 4] >> 4 & 3) << 2 | (q[s] >> 6) << 4 | (q[s + 4] >> 6) << 6);
    }
}

void get_scales(Type type, const uint8_t * plane, uint8_t * block, int row) {
    if (type == q6_k) {
        std::memcpy(block + q6_k_d, plane + 2 * row, 2);
        for (int s = 0; s < 16; ++s) {
            block[q6_k_scales + s] = plane[32 + pair_at(s, row)];
        }
        return;
    }
    std::memcpy(block, plane + 2 * row, 2);
    if (type == q4_0 || type == q8_0) {
        return;
    }
    std::memcpy(block + 2, plane + 32 + 2 * row, 2);
    if (type == q4_1) {
        return;
    }
    uint8_t * q = block + k_scales;
    for (int s = 0; s < 4; ++s) {
        const int low = plane[k_low + pair_at(s, row)], high = plane[k_high_pairs + pair_at(s, row)];
        q[s] = static_cast<uint8_t>((low & 15) | (high & 3) << 4 | (high >> 4 & 3) << 6);
        q[s + 4] = static_cast<uint8_t>(low >> 4 | (high >> 2 & 3) << 4 | (high >> 6) << 6);
        q[s + 8] = plane[k_low + pair_at(s + 4, row)];
    }
}

template <Type type, typename Visit>  // Visit(row_block_offset, code_offset, scale_offset, row_in_group)
void each_block(int64_t row_length, int64_t first, int64_t last, Visit visit) {
    const BlockFormat & format = block_formats[type];
    const int64_t n_blocks = row_length / format.block;
    for (int64_t group = first; group < last; ++group) {
        for (int64_t block = 0; block < n_blocks; ++block) {
            const int64_t unit = group * n_blocks + block;
            for (int row = 0; row < group_rows; ++row) {
                visit(((group * group_rows + row) * n_blocks + block) * format.block_bytes,
                      unit * format.code_bytes + 4 * row, unit * format.scale_bytes, row);
            }
        }
    }
}

template <Type type>
void pack_groups(const Planes & planes, int64_t row_length, const uint8_t * rows, int64_t first, int64_t last) {
    auto * codes = const_cast<uint8_t *>(planes.codes);
    auto * scales = const_cast<uint8_t *>(planes.scales);
    each_block<type>(row_length, first, last, [&](int64_t from, int64_t code, int64_t scale, int row) {
        uint8_t bytes[256];
        split<type>(rows + from, bytes);
        put_codes<type>(bytes, codes + code);
        put_scales(type, rows + from, scales + scale, row);
    });
}

template <Type type>
void unpack_groups(const Planes & planes, int64_t row_length, uint8_t * rows, int64_t first, int64_t last) {
    each_block<type>(row_length, first, last, [&](int64_t to, int64_t code, int64_t scale, int row) {
        uint8_t bytes[256] = {};
        get_codes<type>(planes.codes + code, bytes);
        join<type>(bytes, rows + to);
        get_scales(type, planes.scales + scale, rows + to, row);
    });
}

using Pack = void (*)(const Planes &, int64_t, const uint8_t *, int64_t, int64_t);
using Unpack = void (*)(const Planes &, int64_t, uint8_t *, int64_t, int64_t);
constexpr Pack packs[n_types] = {pack_groups<q4_0>, pack_groups<q4_1>, pack_groups<q8_0>,
                                 pack_groups<q4_k>, pack_groups<q5_k>, pack_groups<q6_k>};
constexpr Unpack unpacks[n_types] = {unpack_groups<q4_0>, unpack_groups<q4_1>, unpack_groups<q8_0>,
                                     unpack_groups<q4_k>, unpack_groups<q5_k>, unpack_groups<q6_k>};

}  // namespace

void pack(Type type, int64_t n_rows, int64_t row_length, const void * source, void * packed, int64_t first,
          int64_t last) {
    packs[type](Planes::of(type, n_rows, row_length, packed), row_length, static_cast<const uint8_t *>(source), first,
                last);
}

void unpack(Type type, int64_t n_rows, int64_t row_length, const void * packed, void * rows, int64_t first,
            int64_t last) {
    unpacks[type](Planes::of(type, n_rows, row_length, packed), row_length, static_cast<uint8_t *>(rows), first, last);
}

}  // namespace pgl::kernels
