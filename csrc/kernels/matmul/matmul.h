// MUL_MAT over repacked weights: which operations are ours, their plan, and the threaded driver.
#pragma once

#include "ggml.h"
#include "kernels/matmul/layout.h"

struct ggml_compute_params;

namespace pgl::kernels {

/// Our name of a type of weights; `n_types` for one that is not ours.
Type type_of(ggml_type type);
/// True if `op` multiplies an owned 2-D weight by F32 rows. Looks at types and shapes only, never at the buffer.
bool matmul_supports(const ggml_tensor * op);
/// Called in node order before a graph is computed, every time; `matmul_compute` relies on it.
void matmul_plan(int n_threads, const ggml_tensor * op);
/// Runs this thread's share of `op`; called by all threads of the pool.
void matmul_compute(const ggml_compute_params * params, ggml_tensor * op);

}  // namespace pgl::kernels
