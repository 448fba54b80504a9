// Memory use: what a model and its contexts hold of each GPU, as llama.cpp counts its own buffers.
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

}  // namespace pgl
