#include "bare_loop.h"

#include "kernels/kernels.h"
#include "llama/devices.h"
#include "platform/machine.h"
#include "request.h"

#include <ggml-cpu.h>
#include <llama.h>

#include <algorithm>
#include <chrono>
#include <memory>

namespace pgl {

BareLoop bare_loop(const std::string & path, int32_t n_prompt, int32_t n_tokens, int32_t n_ctx, int32_t n_threads,
                   bool kernels) {
    initialise_backends();
    kernels::set_enabled(kernels);
    if (n_prompt < 1 || n_tokens < 1 || n_prompt + n_tokens > n_ctx) {
        throw Error("invalid_request", "n_prompt and n_tokens must be at least 1 and fit n_ctx together");
    }
    if (n_threads <= 0) {
        n_threads = machine::usable_threads();
    }
    ggml_backend_dev_t no_devices[] = {nullptr};
    llama_model_params model_params = llama_model_default_params();
    model_params.devices = no_devices;
    const std::unique_ptr<llama_model, void (*)(llama_model *)> model(
        llama_model_load_from_file(path.c_str(), model_params), llama_model_free);
    if (!model) {
        throw Error("invalid_model", "llama.cpp refused the file");
    }
    ggml_threadpool_params pool_params = ggml_threadpool_params_default(n_threads);
    const std::unique_ptr<ggml_threadpool, void (*)(ggml_threadpool *)> pool(ggml_threadpool_new(&pool_params),
                                                                             ggml_threadpool_free);
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(n_ctx);
    params.n_batch = params.n_ubatch = 512;
    params.n_threads = params.n_threads_batch = n_threads;
    params.no_perf = true;
    const std::unique_ptr<llama_context, void (*)(llama_context *)> context(llama_init_from_model(model.get(), params),
                                                                            llama_free);
    if (!context) {
        throw Error("out_of_memory", "the context could not be created");
    }
    llama_attach_threadpool(context.get(), pool.get(), pool.get());

    const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model.get()));
    using Clock = std::chrono::steady_clock;
    const auto ms_since = [](Clock::time_point start) {
        return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
    };
    std::vector<llama_token> prompt(static_cast<size_t>(n_prompt));
    for (size_t i = 0; i < prompt.size(); ++i) {
        prompt[i] = static_cast<llama_token>((i * 7919 + 17) % static_cast<size_t>(n_vocab));
    }
    const auto feed = [&](llama_token * tokens, int32_t n) {
        if (llama_decode(context.get(), llama_batch_get_one(tokens, n)) != 0) {
            throw Error("internal_error", "llama_decode failed");
        }
        const float * logits = llama_get_logits_ith(context.get(), -1);
        return static_cast<llama_token>(std::max_element(logits, logits + n_vocab) - logits);
    };
    BareLoop result;
    llama_token next = 0;
    auto start = Clock::now();
    for (int32_t at = 0; at < n_prompt; at += 512) {
        next = feed(prompt.data() + at, std::min(512, n_prompt - at));
    }
    result.prefill_ms = ms_since(start);
    for (int32_t i = 0; i < n_tokens; ++i) {
        start = Clock::now();
        next = feed(&next, 1);
        result.token_ms.push_back(ms_since(start));
    }
    return result;
}

}  // namespace pgl
