// Memory plan: how long a context fits this machine, and which layers on which GPU. Decided before a byte is allocated.
#pragma once

#include "gguf/check.h"
#include "request.h"

#include <cstdint>
#include <string>
#include <vector>

namespace pgl {

// What there is, in bytes.
struct MemoryAvailable {
    uint64_t host = 0;  // machine::available_bytes()
    std::vector<uint64_t> gpus;  // free on each, in the order they are used
    bool shared = false;  // the GPUs have no memory of their own: they take the host's
    std::string no_gpu_reason;  // for messages; "" = nothing to say
};

struct MemoryPlan {
    int32_t n_ctx = 0;  // tokens of each stream
    int32_t n_gpu_layers = 0;  // the last ones of the model; the output counts as one
    std::vector<int32_t> layers_of_gpu;  // how many of them each GPU gets, in the order of the model
    int32_t max_n_ctx = 0;  // the longest that fits
    uint64_t cache_bytes_per_token = 0;  // of one stream; 0 for a model that does not generate
    std::string placement;  // in words: which layers run where, and why not more of them on a GPU
};

// `generates`: whether the model will have a KV cache. Throws Error("invalid_request") for options that exclude each
// other or ask for a GPU that is not there; Error("out_of_memory") where nothing fits, with details need and have, and
// max_n_ctx, or max_n_gpu_layers for more layers than the GPUs hold.
MemoryPlan plan_memory(const GgufSummary & model, bool generates, const EngineOptions & options,
                       const MemoryAvailable & available);

// The training length of the model, in tokens; 8,192 where the file does not say.
int32_t trained_context(const GgufSummary & model);

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kMemoryMargin = 256 * kMiB;  // left to the rest of the process, and on each GPU

std::string mib(uint64_t bytes);  // "123 MiB", for messages

}  // namespace pgl
