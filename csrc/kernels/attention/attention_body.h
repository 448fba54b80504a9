// The attention kernel over a 16-lane `Vec`: included by each attention_<isa>.cpp after it has defined Vec, its
// operations, tile_rows and tile_vecs. Everything is local to the including file, so instruction sets never mix.
//
// Every element is the same chain of operations in any tile, so tile shapes, neighbours and threads change no bit:
//   score  = fma over each 32 dimensions, those sums added in order (a third of one long chain's error), then
//            fma(score, scale, mask)
//   out    = fma over the cells of a block in order; a masked cell adds 0 * v, which is skipped or not, for no change
//   sums   = four vectors of a block by pairs, then lanes by halves

#include "kernels/attention/attention_load.h"

namespace pgl::kernels {
namespace {

constexpr int block_vecs = block_cells / 16;
constexpr int chain = 32;

/// exp(x) for x <= 0 to about 1 ulp, exactly 1 at 0, exactly 0 below -87; NaN stays.
inline Vec exp_negative(Vec x) {
    // Adding the magic number rounds to an integer n and leaves n + 127 in the low bits: the exponent of 2^n.
    const Vec magic = set1(12583039.0f);
    const Vec t = fma(x, set1(1.44269504f), magic);
    const Vec n = sub(t, magic);
    const Vec r = fma(n, set1(1.90465421e-9f), fma(n, set1(-0.693147182f), x));
    // Minimax of exp(r) on |r| <= ln(2) / 2 with the first two coefficients 1: 0.06 * 2^-24.
    Vec p = set1(0.00138145401f);
    p = fma(p, r, set1(0.00836874516f));
    p = fma(p, r, set1(0.0416683908f));
    p = fma(p, r, set1(0.166665204f));
    p = fma(p, r, set1(0.499999934f));
    p = fma(p, r, set1(1.0f));
    p = fma(p, r, set1(1.0f));
    return zero_if_less(mul(p, exponent_bits(t)), x, set1(-87.0f));
}

inline float negative_infinity() {
    return -__builtin_inff();
}

constexpr int split_blocks = split_cells / block_cells;

struct Block {
    const float * kt;            // [dk][block_cells]
    const char * v;              // cells, Split::v_bytes apart
    bool any;                    // some row sees some cell
};

struct Split {
    int dk, dv;
    float scale;
    size_t v_bytes;
    int n_blocks;
    Block blocks[split_blocks];
};

struct QueryRow {
    const float * q;
    const uint16_t * mask;       // a value per cell of the split, or null
    const uint64_t * valid;      // a set of cells per block
};

/// out[R rows][16 * N from d] = rescale * out + p v over the cells in `any`.
template <CellType type, int R, int N>
inline void accumulate_v(const Split & split, const char * v, int d, const float (*p)[block_cells], uint64_t any,
                         const float * rescale, float * out) {
    Vec acc[R][N];
    for (int r = 0; r < R; ++r) {
        for (int i = 0; i < N; ++i) {
            acc[r][i] = mul(load(out + r * split.dv + d + 16 * i), set1(rescale[r]));
        }
    }
    for (; any; any &= any - 1) {
        const int c = __builtin_ctzll(any);
        Vec x[N];
        for (int i = 0; i < N; ++i) {
            x[i] = load_cell<type>(v + c * split.v_bytes, d + 16 * i);
        }
        for (int r = 0; r < R; ++r) {
            const Vec weight = set1(p[r][c]);
            for (int i = 0; i < N; ++i) {
                acc[r][i] = fma(weight, x[i], acc[r][i]);
            }
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int i = 0; i < N; ++i) {
            store(out + r * split.dv + d + 16 * i, acc[r][i]);
        }
    }
}

/// q . k of R rows and every cell of the block.
template <int R> inline void scores(const float * kt, int dk, const QueryRow * rows, float (*p)[block_cells]) {
    for (int c = 0; c < block_vecs; c += tile_vecs) {
        const float * k = kt + 16 * c;
        for (int d = 0; d < dk;) {
            Vec acc[R][tile_vecs];
            for (int r = 0; r < R; ++r) {
                for (int i = 0; i < tile_vecs; ++i) {
                    acc[r][i] = set1(0.0f);
                }
            }
            for (const int stop = d + chain < dk ? d + chain : dk; d < stop; ++d, k += block_cells) {
                Vec x[tile_vecs];
                for (int i = 0; i < tile_vecs; ++i) {
                    x[i] = load(k + 16 * i);
                }
                for (int r = 0; r < R; ++r) {
                    const Vec q = set1(rows[r].q[d]);
                    for (int i = 0; i < tile_vecs; ++i) {
                        acc[r][i] = fma(q, x[i], acc[r][i]);
                    }
                }
            }
            for (int r = 0; r < R; ++r) {
                for (int i = 0; i < tile_vecs; ++i) {
                    float * to = p[r] + 16 * (c + i);
                    store(to, d > chain ? add(load(to), acc[r][i]) : acc[r][i]);
                }
            }
        }
    }
}

/// Scores of block `b` to weights exp(score - new maximum), in place.
template <int R>
inline void softmax(float scale, int b, const QueryRow * rows, AttentionState state, float (*p)[block_cells],
                    float * rescale) {
    const Vec nothing = set1(negative_infinity());
    alignas(64) float old_max[16] = {}, new_max[16] = {}, sums[16] = {};
    for (int r = 0; r < R; ++r) {
        const uint16_t * mask = rows[r].mask ? rows[r].mask + b * block_cells : nullptr;
        const uint64_t valid = rows[r].valid[b];
        Vec best = nothing;
        for (int i = 0; i < block_vecs; ++i) {
            const Vec bias = mask ? load_f16(mask + 16 * i) : set1(0.0f);
            const Vec score = fma(load(p[r] + 16 * i), set1(scale), bias);
            const Vec s = keep(static_cast<uint16_t>(valid >> 16 * i), score, nothing);
            store(p[r] + 16 * i, s);
            best = max(s, best);
        }
        old_max[r] = state.max[r];
        new_max[r] = reduce_max(max(best, set1(old_max[r])));
    }
    for (int r = 0; r < R; ++r) {
        state.max[r] = new_max[r];
        // A row that has seen nothing stays at -inf: subtract 0, or -inf - -inf would poison it.
        new_max[r] = new_max[r] == negative_infinity() ? 0.0f : new_max[r];
        const Vec shift = set1(new_max[r]);
        Vec x[block_vecs];
        for (int i = 0; i < block_vecs; ++i) {
            x[i] = exp_negative(sub(load(p[r] + 16 * i), shift));
            store(p[r] + 16 * i, x[i]);
        }
        sums[r] = reduce_add(add(add(x[0], x[1]), add(x[2], x[3])));
    }
    store(rescale, exp_negative(sub(load(old_max), load(new_max))));
    for (int r = 0; r < R; ++r) {
        state.sum[r] = fma1(state.sum[r], rescale[r], sums[r]);
    }
}

/// total = total (+) part, up to 16 rows.
inline void fold_rows(AttentionState total, AttentionState part, int n, int dv) {
    alignas(64) float x[16] = {}, y[16] = {};
    for (int r = 0; r < n; ++r) {
        const float top = part.max[r] > total.max[r] ? part.max[r] : total.max[r];
        const float shift = top == negative_infinity() ? 0.0f : top;
        x[r] = total.max[r] - shift;
        y[r] = part.max[r] - shift;
        total.max[r] = top;
    }
    store(x, exp_negative(load(x)));
    store(y, exp_negative(load(y)));
    for (int r = 0; r < n; ++r) {
        total.sum[r] = fma1(part.sum[r], y[r], total.sum[r] * x[r]);
        for (int i = r * dv; i < (r + 1) * dv; i += 16) {
            store(total.out + i, fma(load(part.out + i), set1(y[r]), mul(load(total.out + i), set1(x[r]))));
        }
    }
}

/// R rows over one split, from nothing; then folded into `total`.
template <CellType type, int R> void attend_tile(const Split & split, const QueryRow * rows, AttentionState total) {
    alignas(64) float max[R], sum[R], out[R * max_head_size];
    const AttentionState part = {max, sum, out};
    bool started = false;
    for (int b = 0; b < split.n_blocks; ++b) {
        uint64_t any = 0;
        for (int r = 0; r < R; ++r) {
            any |= rows[r].valid[b];
        }
        if (!any) {
            continue;
        }
        if (!started) {
            started = true;
            for (int r = 0; r < R; ++r) {
                max[r] = negative_infinity();
                sum[r] = 0.0f;
            }
            for (int i = 0; i < R * split.dv; i += 16) {
                store(out + i, set1(0.0f));
            }
        }
        alignas(64) float p[R][block_cells];
        alignas(64) float rescale[16];
        scores<R>(split.blocks[b].kt, split.dk, rows, p);
        softmax<R>(split.scale, b, rows, part, p, rescale);
        int d = 0;
        for (; d + 16 * tile_vecs <= split.dv; d += 16 * tile_vecs) {
            accumulate_v<type, R, tile_vecs>(split, split.blocks[b].v, d, p, any, rescale, out);
        }
        for (; d < split.dv; d += 16) {
            accumulate_v<type, R, 1>(split, split.blocks[b].v, d, p, any, rescale, out);
        }
    }
    if (started) {
        fold_rows(total, part, R, split.dv);
    }
}

template <CellType type, int R = tile_rows>
inline void attend_tile_of(int n, const Split & split, const QueryRow * rows, AttentionState total) {
    if (n == R) {
        attend_tile<type, R>(split, rows, total);
    } else if constexpr (R > 1) {
        attend_tile_of<type, R - 1>(n, split, rows, total);
    }
}

/// What the cells of a split mean to each token.
struct Masks {
    const uint16_t * mask;       // or null
    int64_t stride;
    const uint64_t * valid;      // [tokens][split_blocks]
};

/// Tokens [t0, t1), in tiles as equal as they come.
template <CellType type>
inline void attend_tokens(const AttentionRows & a, const Split & split, const Masks & masks, int t0, int t1,
                          AttentionState total) {
    const int begin = t0 * a.n_group, end = t1 * a.n_group;
    const int n_tiles = (end - begin + tile_rows - 1) / tile_rows;
    QueryRow rows[tile_rows];
    for (int i = 0, r = begin; i < n_tiles; ++i) {
        const int stop = begin + static_cast<int>(static_cast<int64_t>(end - begin) * (i + 1) / n_tiles);
        const int n = stop - r;
        const AttentionState at = {total.max + r, total.sum + r, total.out + static_cast<int64_t>(r) * a.dv};
        for (int j = 0; j < n; ++j, ++r) {
            const int token = r / a.n_group, head = r % a.n_group;
            rows[j].q = reinterpret_cast<const float *>(a.q + token * a.q_token_bytes + head * a.q_head_bytes);
            rows[j].mask = masks.mask ? masks.mask + token * masks.stride : nullptr;
            rows[j].valid = masks.valid + token * split_blocks;
        }
        attend_tile_of<type>(n, split, rows, at);
    }
}

template <CellType k_type, CellType v_type>
void attend_cells(const AttentionRows & a, int64_t first, int n, AttentionState total, char * scratch) {
    float * kt = reinterpret_cast<float *>(scratch);
    float * v = kt + split_cells * a.dk;
    uint64_t * valid = reinterpret_cast<uint64_t *>(v + split_cells * a.dv);
    uint16_t * padded = reinterpret_cast<uint16_t *>(valid + split_blocks * a.n_tokens);
    Masks masks = {a.mask ? a.mask + first : nullptr, a.mask_stride, valid};
    if (masks.mask && n % block_cells != 0) {  // whole blocks are read: not past the end of the last row
        for (int t = 0; t < a.n_tokens; ++t) {
            for (int c = 0; c < split_cells; ++c) {
                padded[t * split_cells + c] = c < n ? masks.mask[t * masks.stride + c] : 0xfc00;
            }
        }
        masks.mask = padded;
        masks.stride = split_cells;
    }
    // One token: its rows see the same cells, and V is read where it lies. More: unpacked once for all.
    const bool in_place = a.n_tokens == 1 && a.n_group <= 2 * tile_rows;
    Split split{};
    split.dk = a.dk;
    split.dv = a.dv;
    split.scale = a.scale;
    split.v_bytes = in_place ? a.v_bytes : a.dv * sizeof(float);
    split.n_blocks = (n + block_cells - 1) / block_cells;
    if (first == 0) {
        prefetch(a.k, a.k_bytes, 0, n < ahead ? n : ahead, cell_bytes<k_type>(a.dk));
    }
    uint64_t any[split_blocks] = {};
    bool finite = true;
    for (int b = 0; b < split.n_blocks; ++b) {
        const int c = b * block_cells, m = n - c < block_cells ? n - c : block_cells;
        for (int t = 0; t < a.n_tokens; ++t) {
            const uint64_t bits =
                masks.mask ? unmasked(masks.mask + t * masks.stride + c) : ~uint64_t{0} >> (block_cells - m);
            valid[t * split_blocks + b] = bits;
            any[b] |= bits;
        }
        if (!any[b]) {
            continue;
        }
        Block & block = split.blocks[b];
        block.kt = kt + c * a.dk;
        load_k<k_type, v_type>(a, first + c, 64 - __builtin_clzll(any[b]), kt + c * a.dk);
        if (in_place) {
            block.v = a.v + (first + c) * a.v_bytes;
        } else {
            block.v = reinterpret_cast<const char *>(v + c * a.dv);
            finite = load_v<v_type>(a, first + c, any[b], v + c * a.dv) && finite;
        }
    }
    if (in_place) {
        attend_tokens<v_type>(a, split, masks, 0, 1, total);
    } else if (finite) {
        attend_tokens<CellType::f32>(a, split, masks, 0, a.n_tokens, total);
    } else {  // 0 * NaN is not 0: give each token a V without the cells masked for it
        for (int t = 0; t < a.n_tokens; ++t) {
            for (int b = 0; b < split.n_blocks; ++b) {
                const int c = b * block_cells;
                load_v<v_type>(a, first + c, valid[t * split_blocks + b], v + c * a.dv);
            }
            attend_tokens<CellType::f32>(a, split, masks, t, t + 1, total);
        }
    }
}

template <CellType k_type>
inline void attend_with_k(const AttentionRows & a, int64_t first, int n, AttentionState total, char * scratch) {
    switch (a.v_type) {
    case CellType::f16:
        return attend_cells<k_type, CellType::f16>(a, first, n, total, scratch);
    case CellType::q8_0:
        return attend_cells<k_type, CellType::q8_0>(a, first, n, total, scratch);
    default:
        return attend_cells<k_type, CellType::f32>(a, first, n, total, scratch);
    }
}

void attend(const AttentionRows & a, int64_t first, int n, AttentionState total, char * scratch) {
    switch (a.k_type) {
    case CellType::f16:
        return attend_with_k<CellType::f16>(a, first, n, total, scratch);
    case CellType::q8_0:
        return attend_with_k<CellType::q8_0>(a, first, n, total, scratch);
    default:
        return attend_with_k<CellType::f32>(a, first, n, total, scratch);
    }
}

void start(AttentionState state, int n_rows, int dv) {
    for (int r = 0; r < n_rows; ++r) {
        state.max[r] = negative_infinity();
        state.sum[r] = 0.0f;
    }
    for (int64_t i = 0; i < static_cast<int64_t>(n_rows) * dv; i += 16) {
        store(state.out + i, set1(0.0f));
    }
}

void fold(AttentionState total, AttentionState part, int n_rows, int dv) {
    for (int r = 0; r < n_rows; r += 16) {
        const int64_t i = static_cast<int64_t>(r) * dv;
        fold_rows({total.max + r, total.sum + r, total.out + i}, {part.max + r, part.sum + r, part.out + i},
                  n_rows - r < 16 ? n_rows - r : 16, dv);
    }
}

void finish(float sum, const float * out, int dv, float * dst) {
    const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
    for (int d = 0; d < dv; d += 16) {
        store(dst + d, fma(load(out + d), set1(inverse), set1(0.0f)));  // + 0: a skipped cell leaves -0, an added one 0
    }
}

int64_t valid_end(const uint16_t * mask, int64_t n) {
    while (n > 0 && n % block_cells != 0) {
        if (mask[n - 1] != 0xfc00) {
            return n;
        }
        --n;
    }
    for (; n > 0; n -= block_cells) {
        const uint64_t bits = unmasked(mask + n - block_cells);
        if (bits) {
            return n - __builtin_clzll(bits);
        }
    }
    return 0;
}

}  // namespace
}  // namespace pgl::kernels
