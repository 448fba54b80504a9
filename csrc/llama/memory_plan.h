// Memory plan: how long a context and how many layers on the GPU fit this machine. Decided before a byte is allocated.
#pragma once

#include "gguf/check.h"
#include "request.h"

#include <cstdint>
#include <string>

namespace pgl {

// What there is, in bytes.
struct MemoryAvailable {
    uint64_t host = 0;     // machine::available_bytes()
    uint64_t device = 0;   // free on all GPUs together
    int32_t n_gpus = 0;
};

struct MemoryPlan {
    int32_t n_ctx = 0;                      // tokens of each stream
    int32_t n_gpu_layers = 0;               // the output layer counts as one
    uint64_t cache_bytes_per_token = 0;     // of one stream; 0 for a model that does not generate
};

// `generates`: whether the model will have a KV cache. Throws Error("invalid_request") for options that exclude each
// other or ask for a GPU that is not there, Error("out_of_memory", details need, have, max_n_ctx) where nothing fits.
MemoryPlan plan_memory(const GgufSummary & model, bool generates, const EngineOptions & options,
                       const MemoryAvailable & available);

// The training length of the model, in tokens; 8,192 where the file does not say.
int32_t trained_context(const GgufSummary & model);

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kMemoryMargin = 256 * kMiB;   // left to the rest of the process

std::string mib(uint64_t bytes);   // "123 MiB", for messages

}  // namespace pgl
