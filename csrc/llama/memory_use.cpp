#include "llama/memory_use.h"

#include <llama-ext.h>   // of llama.cpp's unfinished interface; nothing else here uses it

namespace pgl {

std::map<std::string, uint64_t> memory_use(const std::vector<const llama_context *> & contexts) {
    std::map<std::string, uint64_t> bytes;
    bool first = true;
    for (const llama_context * context : contexts) {
        if (context == nullptr) {
            continue;
        }
        for (const auto & [type, use] : llama_get_memory_breakdown(context)) {
            ggml_backend_dev_t device = ggml_backend_buft_get_device(type);
            if (device == nullptr || ggml_backend_buft_is_host(type) ||
                ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU) {
                continue;
            }
            bytes[ggml_backend_dev_name(device)] += (first ? use.model : 0) + use.context + use.compute;
        }
        first = false;
    }
    return bytes;
}

MemoryParts memory_parts(const llama_context * context) {
    MemoryParts parts;
    for (const auto & [type, use] : llama_get_memory_breakdown(context)) {
        parts.weights += use.model;
        parts.cache += use.context;
        parts.compute += use.compute;
    }
    return parts;
}

}  // namespace pgl
