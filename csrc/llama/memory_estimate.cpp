#include "llama/memory_estimate.h"

#include "llama/abort.h"
#include "llama/memory_use.h"
#include "llama/model.h"
#include "llama/pooler.h"
#include "llama/weights.h"
#include "platform/machine.h"

#include <llama.h>

#include <algorithm>

namespace pgl {

MemoryEstimate estimate_memory(const std::string & path, const EngineOptions & given) {
    LoadSetup setup = set_up(path, given);
    const GgufSummary & summary = setup.summary;
    EngineOptions & options = setup.options;
    MemoryEstimate estimate;
    estimate.available_bytes = setup.available.host;
    MemoryPlan plan;
    try {
        plan = plan_memory(summary, setup.generates, options, setup.available);
        estimate.fits = true;
        estimate.max_n_ctx = plan.max_n_ctx;
    } catch (const Error & e) {
        if (e.code != "out_of_memory") {
            throw;
        }
        const auto longest = e.details.find("max_n_ctx");
        estimate.max_n_ctx = longest != e.details.end() ? std::stoi(longest->second) : 0;
        setup.available.host = UINT64_MAX / 2;
        plan = plan_memory(summary, setup.generates, options, setup.available);
    }
    // Even an empty context takes some bytes a token, so that one which does not fit is computed from a small one.
    constexpr int32_t kSmallContext = 4096;
    options.n_ctx = estimate.fits ? plan.n_ctx : std::min(plan.n_ctx, kSmallContext);
    options.n_gpu_layers = plan.n_gpu_layers;
    const Abort abort;
    const auto go_on = [](float) { return true; };
    Weights weights(path, summary, options, plan, setup.gpus, go_on, abort, true);
    const Tokenizer tokenizer(llama_model_get_vocab(weights.model()), summary.pre_tokenizer);
    MemoryParts parts;
    Pooler pooler(weights, summary, options);
    ContextPtr context(nullptr, FreeContext{&weights});
    if (setup.generates) {
        context = weights.make_context(context_params(options), "the context");
        parts = memory_parts(context.get());
        const int32_t n_cells = static_cast<int32_t>(llama_n_ctx_seq(context.get()));
        if (!estimate.fits) {
            parts.cache = static_cast<uint64_t>(static_cast<double>(parts.cache) * plan.n_ctx / n_cells);
        }
        estimate.n_ctx = plan.n_ctx;
        estimate.prefix_cache_bytes = prefix_cache_limit(options, summary.tensor_bytes,
                                                         plan.cache_bytes_per_token * static_cast<uint64_t>(n_cells));
    } else {
        estimate.n_ctx = llama_model_n_ctx_train(weights.model());
        pooler.prepare(estimate.n_ctx);
        parts = memory_parts(pooler.context());
    }
    estimate.weights_bytes = parts.weights;
    if (options.mmap && plan.n_gpu_layers == 0 && (options.kernels || !summary.tied)) {
        // Of a mapped token table only the rows of tokens that occur come into memory; half of them is a fair guess.
        // Where it is the output too, our kernels have a copy for that, and ggml's read all of it.
        estimate.weights_bytes -= std::min(parts.weights, summary.input_bytes / 2);
    }
    estimate.cache_bytes = parts.cache;
    estimate.compute_bytes = parts.compute;
    estimate.other_bytes = machine::resident_bytes();
    estimate.total_bytes =
        estimate.weights_bytes + estimate.cache_bytes + estimate.compute_bytes + estimate.other_bytes;
    return estimate;
}

}  // namespace pgl
