// Cells of K and V to float, for attention_body.h: included with it, over the same `Vec`.

namespace pgl::kernels {
namespace {

template <CellType type> constexpr size_t cell_bytes(int d) {
    return type == CellType::f16 ? 2u * d : type == CellType::q8_0 ? 34u * (d / 32u) : 4u * d;
}

/// 16 values of a cell from element `d`.
template <CellType type> inline Vec load_cell(const char * cell, int d) {
    if constexpr (type == CellType::f16) {
        return load_f16(cell + 2 * d);
    } else if constexpr (type == CellType::q8_0) {
        const char * block = cell + (d / 32) * 34;  // f16 scale, 32 x int8
        return mul(load_i8(block + 2 + d % 32), broadcast_f16(block));
    } else {
        return load(reinterpret_cast<const float *>(cell) + d);
    }
}

/// Cells of one head lie a whole token apart: too far for the hardware's own prefetch.
inline void prefetch(const char * cells, size_t stride, int64_t first, int64_t last, size_t bytes) {
    for (; first < last; ++first) {
        for (size_t i = 0; i < bytes; i += 64) {
            __builtin_prefetch(cells + first * stride + i, 0, 2);
        }
    }
}
constexpr int64_t ahead = 64;  // cells: unpacking them takes longer than memory

/// K of cells [first, first + n) as kt[d][block_cells]; columns past n are zero. Fetches their V and the next K.
template <CellType type, CellType v_type>
inline void load_k(const AttentionRows & a, int64_t first, int n, float * kt) {
    alignas(64) static const char nothing[4 * 16] = {};
    for (int c = 0; c < block_cells; c += 16) {
        const int m = n - c < 16 ? n - c : 16;
        if (m <= 0) {
            for (int d = 0; d < a.dk; ++d) {
                store(kt + d * block_cells + c, set1(0.0f));
            }
            continue;
        }
        const int64_t cell = first + c, next = cell + ahead;
        const char * cells = a.k + cell * a.k_bytes;
        prefetch(a.v, a.v_bytes, cell, cell + m, cell_bytes<v_type>(a.dv));
        prefetch(a.k, a.k_bytes, next, next + 16 < a.n_cells ? next + 16 : a.n_cells, cell_bytes<type>(a.dk));
        for (int d = 0; d < a.dk; d += 16) {
            float * to = kt + d * block_cells + c;
            if constexpr (type == CellType::f16) {
                const char * rows[16];
                for (int i = 0; i < 16; ++i) {
                    rows[i] = i < m ? cells + i * a.k_bytes + 2 * d : nothing;
                }
                transpose_f16(rows, to, block_cells);
            } else {
                Vec tile[16];
                for (int i = 0; i < 16; ++i) {
                    tile[i] = i < m ? load_cell<type>(cells + i * a.k_bytes, d) : set1(0.0f);
                }
                transpose(tile);
                for (int i = 0; i < 16; ++i) {
                    store(to + i * block_cells, tile[i]);
                }
            }
        }
    }
}

/// V of the cells in `valid` as v[cell][dv], the others zero: what lies in a masked cell may be anything. False if a
/// valid one holds NaN or infinity.
template <CellType type> inline bool load_v(const AttentionRows & a, int64_t first, uint64_t valid, float * v) {
    Vec poison = set1(0.0f);
    for (int c = 0; c < block_cells; ++c, v += a.dv) {
        if (valid >> c & 1) {
            const char * cell = a.v + (first + c) * a.v_bytes;
            for (int d = 0; d < a.dv; d += 16) {
                const Vec x = load_cell<type>(cell, d);
                poison = fma(x, set1(0.0f), poison);
                store(v + d, x);
            }
        } else {
            for (int d = 0; d < a.dv; d += 16) {
                store(v + d, set1(0.0f));
            }
        }
    }
    return !any_nan(poison);
}

}  // namespace
}  // namespace pgl::kernels
