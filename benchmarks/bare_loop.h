// llama.cpp's own decode loop with nothing around it: what the engine's speed is measured against.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pgl {

struct BareLoop {
    std::vector<double> token_ms;   // one per generated token
    double prefill_ms = 0;          // of the whole prompt
};

// Greedy, one sequence, one batch for the prompt, then one token per llama_decode. `kernels`: with our kernels.
// Throws Error as loading a model does.
BareLoop bare_loop(const std::string & path, int32_t n_prompt, int32_t n_tokens, int32_t n_ctx, int32_t n_threads,
                   bool kernels);

}  // namespace pgl
