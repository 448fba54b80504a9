// The planning pass: notes are kept in the product's own op_params, which a MUL_MAT leaves mostly unused.
#include "kernels/matmul/plan.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "ggml.h"

namespace pgl::kernels {
namespace {

struct Notes {
    Scratch * scratch;
    const ggml_tensor * next;
    Form form;
    int32_t n_taken;
    int32_t reuses;
};

// MUL_MAT keeps its precision and a hint in the first two words.
constexpr size_t notes_offset = GGML_MAX_OP_PARAMS - sizeof(Notes);
static_assert(notes_offset >= 4 * sizeof(int32_t), "notes would overwrite ggml's own parameters");

char * notes_at(const ggml_tensor * op) {
    return reinterpret_cast<char *>(const_cast<ggml_tensor *>(op)->op_params) + notes_offset;
}

void write(const ggml_tensor * op, const Notes & notes) {
    std::memcpy(notes_at(op), &notes, sizeof(notes));
}

Notes read(const ggml_tensor * op) {
    Notes notes;
    std::memcpy(&notes, notes_at(op), sizeof(notes));
    return notes;
}

struct Planner {
    Scratch scratch;
    const ggml_tensor * leader = nullptr;   // the product whose quantised activations `scratch` will hold
    const ggml_tensor * last = nullptr;
    const Isa * isa = nullptr;
    int block = 0;
};

thread_local Planner planner;

}  // namespace

Scratch::~Scratch() {
    std::free(data);
}

void Scratch::grow(size_t bytes) {
    if (bytes > size) {
        std::free(data);
        size = (bytes + bytes / 4 + 63) / 64 * 64;
        data = static_cast<char *>(std::aligned_alloc(64, size));
        if (!data) {
            size = 0;
            throw std::bad_alloc();
        }
    }
}

void plan_product(const ggml_tensor * op, Form form, int block, size_t scratch_bytes) {
    Planner & p = planner;
    p.scratch.grow(scratch_bytes);
    // A product never precedes its leader in a graph's memory; if it does, this is another graph.
    const bool reuses =
        p.leader && p.leader < op && p.leader->src[1] == op->src[1] && p.isa == form.isa && p.block == block;
    if (p.last && p.last < op) {
        Notes notes = read(p.last);
        notes.next = op->src[0];
        write(p.last, notes);
    }
    write(op, {&p.scratch, nullptr, form, 0, reuses});
    p.last = op;
    if (!reuses) {
        p.leader = op;
        p.isa = form.isa;
        p.block = block;
    }
}

void forget_plan() {
    planner.leader = planner.last = nullptr;
}

ProductPlan plan_of(const ggml_tensor * op) {
    const Notes notes = read(op);
    return {notes.form, notes.scratch, notes.next, notes.reuses != 0};
}

int64_t take_units(ggml_tensor * op, int64_t n, int n_threads, int64_t & n_taken) {
    auto * counter = reinterpret_cast<int32_t *>(notes_at(op) + offsetof(Notes, n_taken));
    int32_t first = __atomic_load_n(counter, __ATOMIC_RELAXED);
    do {
        const int64_t left = n - first;
        n_taken = std::min(left, std::max<int64_t>(2, left / (3 * n_threads) / 2 * 2));
    } while (n_taken > 0 && !__atomic_compare_exchange_n(counter, &first, static_cast<int32_t>(first + n_taken), true,
                                                         __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return first;
}

}  // namespace pgl::kernels
