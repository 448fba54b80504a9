// How owned weights lie in memory: 16 rows side by side, codes in one plane, scales in another. Same bytes as GGUF.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pgl::kernels {

enum Type : int { q4_0, q4_1, q8_0, q4_k, q5_k, q6_k, n_types };

constexpr int group_rows = 16;  // rows interleaved in one vector of 16 x 4 bytes

struct BlockFormat {
    int block;         // weights per block along k
    int block_bytes;   // of one row's block in GGUF
    int code_bytes;    // of one block of 16 rows in the code plane
    int scale_bytes;   // of one block of 16 rows in the scale plane
};

constexpr BlockFormat block_formats[n_types] = {
    {32, 18, 4 * 64, 32},              // q4_0: d
    {32, 20, 4 * 64, 64},              // q4_1: d, m
    {32, 34, 8 * 64, 32},              // q8_0: d; codes biased by 128
    {256, 144, 32 * 64, 64 + 192},     // q4_k: d, dmin, 6-bit scales and mins
    {256, 176, 40 * 64, 64 + 192},     // q5_k: as q4_k, 8 more vectors of high bits
    {256, 210, 48 * 64, 32 + 256},     // q6_k: d, 16 int8 scales; codes 0..63
};

/// A packed N x K matrix: the code plane of all row groups, then the scale plane.
struct Planes {
    Type type;
    int64_t n_blocks;        // per row
    const uint8_t * codes;   // [N / 16][n_blocks][code_bytes]
    const uint8_t * scales;  // [N / 16][n_blocks][scale_bytes]

    static Planes of(Type type, int64_t n_rows, int64_t row_length, const void * data) {
        const BlockFormat & format = block_formats[type];
        const int64_t n_blocks = row_length / format.block;
        const auto * base = static_cast<const uint8_t *>(data);
        return {type, n_blocks, base, base + n_rows / group_rows * n_blocks * format.code_bytes};
    }
};

/// Packs row groups [first, last) of GGUF rows `source` into `packed`; groups are independent, so threads may share.
void pack(Type type, int64_t n_rows, int64_t row_length, const void * source, void * packed, int64_t first,
          int64_t last);
/// The exact inverse of `pack`.
void unpack(Type type, int64_t n_rows, int64_t row_length, const void * packed, void * rows, int64_t first,
            int64_t last);

}  // namespace pgl::kernels
