// MUL_MAT over repacked weights: which operations are ours, their scratch, and the threaded driver.
#pragma once

#include <cstddef>

struct ggml_tensor;
struct ggml_compute_params;

namespace pgl::kernels {

/// True if `op` multiplies an owned 2-D weight by F32 rows. Looks at types and shapes only, never at the buffer.
bool matmul_supports(const ggml_tensor * op);
/// Bytes of shared scratch `matmul_compute` needs for `op` on `n_threads` threads.
size_t matmul_work_size(int n_threads, const ggml_tensor * op);
/// Runs this thread's share of `op`; called by all threads of the pool.
void matmul_compute(const ggml_compute_params * params, ggml_tensor * op);

}  // namespace pgl::kernels
