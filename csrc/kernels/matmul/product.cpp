// Passes of panels over blocks of weight rows.
#include "kernels/matmul/product.h"

#include <algorithm>

namespace pgl::kernels {
namespace {

/// A block of weight rows that stays in the second-level cache while all tokens pass over it.
constexpr int64_t cached_bytes = 384 << 10;
/// How far ahead we ask where the hardware does well but not well enough.
constexpr int64_t near_bytes = 4 << 10;
/// Up to this many passes the memory is the limit as much as the arithmetic.
constexpr int64_t few_passes = 4;

/// A row block: row groups that stay in the second-level cache while all tokens pass over them, and what to prefetch
/// meanwhile.
struct RowBlock {
    int64_t n_groups;
    int64_t run;        // code bytes of a group, which lie in one piece
    int64_t n_passes;   // over its weights, of several panels each where the instruction set takes several
    Ahead once;

    int64_t ahead(int64_t pass, int group) const {
        if (n_passes > 1) {
            // The next pair of groups arrives while this one is multiplied, one group per pass.
            return run < short_run ? far_bytes : pass == group ? 2 * run : 0;
        }
        return once == Ahead::none ? 0 : once == Ahead::near ? near_bytes : std::max(far_bytes, 2 * run);
    }
};

RowBlock row_block_of(const Product & product) {
    const BlockFormat & format = block_formats[product.planes.type];
    const int64_t run = product.planes.n_blocks * format.code_bytes;
    const int64_t at_once = format.block == 256 ? product.form.isa->panels_256 : 1;
    const int64_t n_passes = (product.panels.n_panels + at_once - 1) / at_once;
    // As many as the second-level cache keeps; even, so that kernels can pair row groups.
    const int64_t group_bytes = run + product.planes.n_blocks * format.scale_bytes;
    const bool few = n_passes > 1 && n_passes <= few_passes && run >= short_run;
    const int64_t n_groups = few ? 2 : std::max<int64_t>(2, cached_bytes / group_bytes / 2 * 2);
    return {n_groups, run, n_passes, product.form.ahead};
}

void multiply(const Product & product, const RowBlock & rows, int64_t first, int64_t last) {
    const Planes & planes = product.planes;
    const Panels & panels = product.panels;
    const BlockFormat & format = block_formats[planes.type];
    for (int64_t pass = 0; pass < rows.n_passes; ++pass) {
        const int64_t panel = panels.n_panels * pass / rows.n_passes;
        Multiply task = {planes.codes + first * planes.n_blocks * format.code_bytes,
                         planes.scales + first * planes.n_blocks * format.scale_bytes,
                         last - first,
                         planes.n_blocks,
                         panels.at(product.activations, panel),
                         static_cast<int>(panels.n_panels * (pass + 1) / rows.n_passes - panel),
                         {},
                         product.out + panels.first_token(panel) * product.out_stride + first * group_rows,
                         product.out_stride,
                         {rows.ahead(pass, 0), rows.ahead(pass, 1)},
                         pass == 0};
        for (int p = 0; p < task.n_panels; ++p) {
            task.n_tokens[p] = panels.width(panel + p);
        }
        product.form.isa->multiply[planes.type](task);
    }
}

}  // namespace

void multiply_groups(const Product & product, int64_t first, int64_t last) {
    const RowBlock rows = row_block_of(product);
    for (; first < last; first += rows.n_groups) {
        multiply(product, rows, first, std::min(last, first + rows.n_groups));
    }
}

}  // namespace pgl::kernels
