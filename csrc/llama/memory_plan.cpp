#include "llama/memory_plan.h"

#include <algorithm>

namespace pgl {
namespace {

constexpr int32_t kDefaultContext = 8192;   // tokens: a context is no longer than this unless asked for
constexpr int32_t kLeastContext = 256;      // tokens: the smallest that llama.cpp makes
constexpr uint64_t kMostContext = 1 << 24;  // tokens, as the range of n_ctx

// Upper bound of the compute buffers: a fixed part, activations of a batch, and logits of every stream.
uint64_t compute_bytes(const GgufSummary & model, const EngineOptions & options) {
    return 64 * kMiB + static_cast<uint64_t>(options.n_batch) * (static_cast<uint64_t>(model.n_embd) * 64) +
           static_cast<uint64_t>(options.max_streams) * static_cast<uint64_t>(model.n_vocab) * 8;
}

}  // namespace

std::string mib(uint64_t bytes) {
    return std::to_string(bytes / kMiB) + " MiB";
}

int32_t trained_context(const GgufSummary & model) {
    return model.n_ctx_train > 0 ? model.n_ctx_train : kDefaultContext;
}

MemoryPlan plan_memory(const GgufSummary & model, bool generates, const EngineOptions & options,
                       const MemoryAvailable & available) {
    const bool q8_0 = options.cache_type == CacheType::q8_0;
    if (q8_0 && !options.flash_attention) {
        throw Error("invalid_request", "cache_type q8_0 needs flash_attention", {{"field", "cache_type"}});
    }
    if (options.device == Device::gpu && available.n_gpus == 0) {
        throw Error("invalid_request", "device is \"gpu\", and this build or machine has none", {{"field", "device"}});
    }
    MemoryPlan plan;
    if (generates) {
        plan.cache_bytes_per_token = q8_0 ? model.cache_bytes_q8_0 : model.cache_bytes_f16;
    }
    const bool use_gpu = options.device != Device::cpu && available.n_gpus > 0 && options.n_gpu_layers != 0;
    uint64_t have = use_gpu ? std::max(available.host, available.device) : available.host;
    have -= std::min(have, kMemoryMargin);

    // All weights count, though mapped ones could be reclaimed: those that a kernel repacks or a load reads cannot.
    const uint64_t weights = model.tensor_bytes, compute = compute_bytes(model, options);
    const uint64_t fixed = weights + compute;
    const uint64_t room = have > fixed ? have - fixed : 0;
    // One token of context in every stream.
    const uint64_t per_token =
        std::max<uint64_t>(1, plan.cache_bytes_per_token * static_cast<uint64_t>(options.max_streams));
    const auto max_fit = static_cast<int32_t>(std::min(room / per_token, kMostContext));

    plan.n_ctx = options.n_ctx;
    if (plan.n_ctx == 0) {
        // A quarter of the room, unless that leaves little to work with: the machine has other things to do.
        const auto share = static_cast<int32_t>(std::min(room / 4 / per_token, kMostContext));
        const int32_t train = trained_context(model);
        const int32_t n_ctx = std::min({train, kDefaultContext, std::max(share, std::min(2048, max_fit))});
        plan.n_ctx = std::max(n_ctx, std::min(kLeastContext, train));
    }
    const uint64_t cache = per_token * static_cast<uint64_t>(plan.n_ctx);
    const uint64_t need = fixed + cache;
    if (need > have) {
        throw Error(
            "out_of_memory",
            "the model needs " + mib(need) + " with n_ctx=" + std::to_string(plan.n_ctx) +
                " and max_streams=" + std::to_string(options.max_streams) + ", and " + mib(have) + " are available",
            {{"need", std::to_string(need)}, {"have", std::to_string(have)}, {"max_n_ctx", std::to_string(max_fit)}});
    }

    if (use_gpu && options.n_gpu_layers > 0) {
        plan.n_gpu_layers = options.n_gpu_layers;
    } else if (use_gpu) {
        const auto n_layers = static_cast<uint64_t>(model.n_layer) + 1;  // llama.cpp counts the output layer
        const uint64_t per_layer = weights / n_layers + cache / n_layers + 1;
        const uint64_t usable = available.device - std::min(available.device, kMemoryMargin + compute);
        plan.n_gpu_layers = static_cast<int32_t>(std::min(usable / per_layer, n_layers));
    }
    return plan;
}

}  // namespace pgl
