// Our FLASH_ATTN_EXT for ggml's CPU backend: softmax(scale * q k^T + mask) v over a KV cache of F16, Q8_0 or F32.
#pragma once

#include <stddef.h>

struct ggml_tensor;
struct ggml_compute_params;

namespace pgl::kernels {

/// True for what `attention_compute` does: f32 queries, K and V of one head count each F16, Q8_0 or F32, head sizes
/// multiples of 16 up to 256, a mask shared by all heads or none; no ALiBi, softcap or sinks. The rest is ggml's.
bool attention_supports(const ggml_tensor * op);

/// Bytes of `params->wdata` that `attention_compute` needs.
size_t attention_work_size(int n_threads, const ggml_tensor * op);

/// Runs thread `params->ith`'s part of a supported op. One output row depends on its own query, on the unmasked cells
/// of its stream and on their absolute positions: not on other rows, streams, masked cells, padding or threads.
void attention_compute(const ggml_compute_params * params, ggml_tensor * op);

}  // namespace pgl::kernels
