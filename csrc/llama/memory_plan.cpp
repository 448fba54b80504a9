#include "llama/memory_plan.h"

#include <algorithm>
#include <numeric>

namespace pgl {
namespace {

constexpr int32_t kDefaultContext = 8192;   // tokens: a context is no longer than this unless asked for
constexpr int32_t kUsefulContext = 2048;    // tokens: below it, more than a quarter of the room is taken
constexpr int32_t kLeastContext = 256;      // tokens: the smallest that llama.cpp makes
constexpr uint64_t kMostContext = 1 << 24;  // tokens, as the range of n_ctx

uint64_t above(uint64_t bytes, uint64_t taken) {
    return bytes > taken ? bytes - taken : 0;
}

// What a model takes with one choice of options, in bytes: the sums that a plan is made of.
class Need {
  public:
    Need(const GgufSummary & model, bool generates, const EngineOptions & options)
        : model_(model), generates_(generates), options_(options) {}

    uint64_t cache_per_token() const {
        return generates_ ? (q8_0() ? model_.cache_bytes_q8_0 : model_.cache_bytes_f16) : 0;
    }

    // Of one token of context in every stream; at least 1.
    uint64_t context_token() const { return std::max<uint64_t>(1, cache_per_token() * streams()) + token_of_mask(); }

    // Upper bound of the compute buffers but for what grows with the context: activations of a batch, and logits of
    // every stream.
    uint64_t compute() const {
        return 64 * kMiB + static_cast<uint64_t>(options_.n_batch) * (static_cast<uint64_t>(model_.n_embd) * 64) +
               std::max(streams(), uint64_t{kMaxRows}) * static_cast<uint64_t>(model_.n_vocab) * 8;
    }

    uint64_t compute(int32_t n_ctx) const { return compute() + token_of_mask() * static_cast<uint64_t>(n_ctx); }

    int32_t n_layers() const { return static_cast<int32_t>(model_.layers.size()) + 1; }   // with the output

    // Weights and cache of layer `i`; the last is the output.
    uint64_t layer(int32_t i, int32_t n_ctx) const {
        if (i == n_layers() - 1) {
            return model_.output_bytes;
        }
        const GgufSummary::Layer & layer = model_.layers[static_cast<size_t>(i)];
        const uint64_t cache = !generates_ ? 0 : q8_0() ? layer.cache_bytes_q8_0 : layer.cache_bytes_f16;
        return layer.weights_bytes + cache * streams() * static_cast<uint64_t>(n_ctx);
    }

    // Of layers first ... last - 1.
    uint64_t layers(int32_t first, int32_t last, int32_t n_ctx) const {
        uint64_t sum = 0;
        for (int32_t i = first; i < last; ++i) {
            sum += layer(i, n_ctx);
        }
        return sum;
    }

  private:
    bool q8_0() const { return options_.cache_type == CacheType::q8_0; }
    uint64_t streams() const { return static_cast<uint64_t>(options_.max_streams); }

    // A pass has an entry of the mask for every token of it and of the context, twice, and without flash attention one
    // of every head's scores, twice.
    uint64_t token_of_mask() const {
        const uint64_t scores = options_.flash_attention ? 0 : 8 * static_cast<uint64_t>(model_.n_head);
        return generates_ ? static_cast<uint64_t>(options_.n_batch) * (6 + scores) : 0;
    }

    const GgufSummary & model_;
    const bool generates_;
    const EngineOptions & options_;
};

// A context length by itself: a quarter of the room, unless that leaves little to work with; the machine has other
// things to do.
int32_t choose_context(const GgufSummary & model, uint64_t room, uint64_t per_token) {
    const auto fits = static_cast<int32_t>(std::min(room / per_token, kMostContext));
    const int32_t most = std::min(trained_context(model), kDefaultContext);
    return std::min(most, std::max(fits / 4, std::min(kUsefulContext, fits)));
}

// The last `n` layers on the GPUs, filled from the last GPU backwards so that the output comes to the last one used.
// `most`: no more than this many. Stops at the first layer that fits nowhere.
std::vector<int32_t> fill(const Need & need, int32_t n_ctx, const std::vector<uint64_t> & gpus, int32_t most) {
    const uint64_t aside = need.compute(n_ctx) + kMemoryMargin;
    std::vector<int32_t> layers(gpus.size(), 0);
    // One GPU for all is faster than several in turn.
    const auto largest = std::max_element(gpus.begin(), gpus.end()) - gpus.begin();
    if (aside + need.layers(need.n_layers() - most, need.n_layers(), n_ctx) <= gpus[static_cast<size_t>(largest)]) {
        layers[static_cast<size_t>(largest)] = most;
        return layers;
    }
    int32_t next = need.n_layers() - 1, n = 0;
    for (size_t gpu = gpus.size(); gpu-- > 0;) {
        uint64_t room = above(gpus[gpu], aside);
        while (n < most && need.layer(next, n_ctx) <= room) {
            room -= need.layer(next, n_ctx);
            ++layers[gpu];
            ++n;
            --next;
        }
    }
    return layers;
}

int32_t total(const std::vector<int32_t> & layers) {
    return std::accumulate(layers.begin(), layers.end(), 0);
}

[[noreturn]] void refuse(const char * field, const std::string & message) {
    throw Error("invalid_request", message, {{"field", field}});
}

void check(const EngineOptions & options, const MemoryAvailable & available) {
    if (options.cache_type == CacheType::q8_0 && !options.flash_attention) {
        refuse("cache_type", "cache_type q8_0 needs flash_attention");
    }
    const std::string why = available.no_gpu_reason.empty() ? "" : ": " + available.no_gpu_reason;
    if (options.device == Device::gpu && options.n_gpu_layers == 0) {
        refuse("n_gpu_layers", "n_gpu_layers is 0, and device is \"gpu\": leave one of them out");
    }
    if (options.device == Device::cpu && options.n_gpu_layers > 0) {
        refuse("n_gpu_layers", "n_gpu_layers is " + std::to_string(options.n_gpu_layers) +
                                   ", and device is \"cpu\": leave one of them out");
    }
    if (options.device == Device::gpu && available.gpus.empty()) {
        refuse("device", "device is \"gpu\", and this build or machine has none" + why);
    }
    if (options.n_gpu_layers > 0 && available.gpus.empty()) {
        refuse("n_gpu_layers", "n_gpu_layers is " + std::to_string(options.n_gpu_layers) +
                                   ", and this build or machine has no GPU" + why);
    }
}

std::string words(int32_t n_gpu_layers, int32_t n_layers, const EngineOptions & options,
                  const MemoryAvailable & available) {
    if (n_gpu_layers == n_layers) {
        return "all " + std::to_string(n_layers) + " layers on the GPU";
    }
    if (n_gpu_layers > 0) {
        return std::to_string(n_gpu_layers) + " of " + std::to_string(n_layers) + " layers on the GPU: " +
               (options.n_gpu_layers > 0 ? "n_gpu_layers says so" : "no more fit its free memory");
    }
    const std::string why = options.device == Device::cpu     ? "device is \"cpu\""
                            : options.n_gpu_layers == 0       ? "n_gpu_layers is 0"
                            : !available.gpus.empty()         ? "not one layer fits the GPU's free memory"
                            : available.no_gpu_reason.empty() ? "no GPU was found"
                                                              : available.no_gpu_reason;
    return "all layers on the CPU: " + why;
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
    check(options, available);
    const Need need(model, generates, options);
    const bool use_gpu = options.device != Device::cpu && options.n_gpu_layers != 0 && !available.gpus.empty();
    const std::vector<uint64_t> gpus = use_gpu ? available.gpus : std::vector<uint64_t>{};
    const int32_t n_layers = need.n_layers();
    const uint64_t host = above(available.host, kMemoryMargin);
    MemoryPlan plan;
    plan.cache_bytes_per_token = need.cache_per_token();

    // All weights count, though mapped ones could be reclaimed: those that a kernel repacks or a load reads cannot.
    const uint64_t fixed = model.tensor_bytes + need.compute();
    uint64_t everywhere = host;
    uint64_t on_gpus = 0;   // room for contexts when every layer is on a GPU
    for (const uint64_t gpu : gpus) {
        everywhere += available.shared ? 0 : above(gpu, kMemoryMargin + need.compute());
        on_gpus += above(gpu, kMemoryMargin + need.compute());
    }
    on_gpus = above(on_gpus, need.layers(0, n_layers, 0));
    const auto max_fit = static_cast<int32_t>(std::min(above(everywhere, fixed) / need.context_token(), kMostContext));

    plan.max_n_ctx = max_fit;
    plan.n_ctx = options.n_ctx;
    if (plan.n_ctx == 0) {
        const bool whole = on_gpus / need.context_token() >= static_cast<uint64_t>(kUsefulContext);
        plan.n_ctx = choose_context(model, whole ? on_gpus : above(everywhere, fixed), need.context_token());
        plan.n_ctx = std::max(plan.n_ctx, std::min(kLeastContext, trained_context(model)));
    }
    const uint64_t sum = fixed + need.context_token() * static_cast<uint64_t>(plan.n_ctx);
    const auto too_much = [&](uint64_t needed, uint64_t have) {
        return Error(
            "out_of_memory",
            "the model needs " + mib(needed) + " with n_ctx=" + std::to_string(plan.n_ctx) +
                " and max_streams=" + std::to_string(options.max_streams) + ", and " + mib(have) + " are available",
            {{"need", std::to_string(needed)}, {"have", std::to_string(have)}, {"max_n_ctx", std::to_string(max_fit)}});
    };
    if (sum > everywhere) {
        throw too_much(sum, everywhere);
    }

    if (use_gpu) {
        const int32_t asked = options.n_gpu_layers > 0 ? std::min(options.n_gpu_layers, n_layers) : n_layers;
        plan.layers_of_gpu = fill(need, plan.n_ctx, gpus, asked);
        plan.n_gpu_layers = total(plan.layers_of_gpu);
        const int32_t promised = options.n_gpu_layers > 0 ? asked : options.device == Device::gpu ? 1 : 0;
        if (plan.n_gpu_layers < promised) {
            const uint64_t needed =
                need.compute(plan.n_ctx) + kMemoryMargin + need.layers(n_layers - promised, n_layers, plan.n_ctx);
            const uint64_t have = std::accumulate(gpus.begin(), gpus.end(), uint64_t{0});
            throw Error("out_of_memory",
                        std::to_string(promised) + " of the model's " + std::to_string(n_layers) + " layers need " +
                            mib(needed) + " on the GPU with n_ctx=" + std::to_string(plan.n_ctx) +
                            " and max_streams=" + std::to_string(options.max_streams) + ", and " + mib(have) +
                            " are free; " + std::to_string(plan.n_gpu_layers) + " layers fit",
                        {{"need", std::to_string(needed)},
                         {"have", std::to_string(have)},
                         {"max_n_gpu_layers", std::to_string(plan.n_gpu_layers)}});
        }
        // What stays behind must fit the host alone.
        const uint64_t left =
            model.input_bytes + need.compute(plan.n_ctx) + need.layers(0, n_layers - plan.n_gpu_layers, plan.n_ctx);
        if (left > host) {
            throw too_much(left, host);
        }
    }
    plan.placement = words(plan.n_gpu_layers, n_layers, options, available);
    return plan;
}

}  // namespace pgl
