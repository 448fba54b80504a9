// Memory use: what a model and its contexts hold of each GPU, and of everything, as llama.cpp counts its own
// buffers.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

struct llama_context;

namespace pgl {

// Bytes by the name of the GPU: weights, caches and compute buffers. `contexts` are of one model; null ones are
// skipped.
std::map<std::string, uint64_t> memory_use(const std::vector<const llama_context *> & contexts);

// Of a context and its model together, on all devices.
struct MemoryParts {
    uint64_t weights = 0, cache = 0, compute = 0;
};
MemoryParts memory_parts(const llama_context * context);

}  // namespace pgl
