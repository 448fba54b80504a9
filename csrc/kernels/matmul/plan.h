// What ggml's planning pass, one thread in node order before every graph, leaves in an operation for its compute pass.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/matmul/forms.h"

struct ggml_tensor;

namespace pgl::kernels {

/// Quantised activations live here, not in ggml's work area: they outlive the operations between q, v and k.
/// One per planning thread, which is the engine's thread; it is also thread 0 of the compute pass.
struct Scratch {
    char * data = nullptr;   // 64-byte aligned
    size_t size = 0;

    Scratch() = default;
    Scratch(const Scratch &) = delete;
    ~Scratch();
    void grow(size_t bytes);
};

struct ProductPlan {
    Form form;
    Scratch * scratch;
    const ggml_tensor * next;   // the weights of the following product, or null
    bool reuses;                // its activations are in `scratch` already, put there by an earlier product
};

/// Notes `op` as the next product of this thread's graph. Products of one instruction set, whose blocks are of one
/// size, quantise alike and may share.
void plan_product(const ggml_tensor * op, Form form, int block, size_t scratch_bytes);
/// The next planned product starts a new graph: nothing is carried over, tensors keep their addresses but not their
/// data. A graph that is planned and not computed has to be forgotten too, before its tensors are freed or another one
/// is planned: what is remembered here points to them.
void forget_plan();
ProductPlan plan_of(const ggml_tensor * op);
/// Takes some of units [0, n) of a planned product, an even number but for the last: many at first, few at the end, so
/// that all threads finish together. Returns the first; `n_taken` is 0 once all are gone.
int64_t take_units(ggml_tensor * op, int64_t n, int n_threads, int64_t & n_taken);

}  // namespace pgl::kernels
