// Bare context: a model, its threads and one context as llama.cpp itself would make them, on the CPU.
#pragma once

#include "kernels/kernels.h"
#include "platform/machine.h"
#include "request.h"

#include <ggml-cpu.h>
#include <llama.h>

#include <cstdint>
#include <memory>
#include <string>

constexpr int32_t kBatch = 512;  // tokens

struct BareContext {
    std::unique_ptr<llama_model, void (*)(llama_model *)> model{nullptr, llama_model_free};
    std::unique_ptr<ggml_threadpool, void (*)(ggml_threadpool *)> pool{nullptr, ggml_threadpool_free};
    std::unique_ptr<llama_context, void (*)(llama_context *)> context{nullptr, llama_free};

    int32_t n_vocab() const { return llama_vocab_n_tokens(llama_model_get_vocab(model.get())); }
};

// `n_threads` 0: what this process may use. `n_ctx`: tokens. Throws pgl::Error.
inline BareContext open_bare_context(const std::string & path, int32_t n_threads, int32_t n_ctx,
                                     ggml_type cache_type = GGML_TYPE_F16) {
    BareContext bare;
    n_threads = n_threads > 0 ? n_threads : pgl::machine::usable_threads();
    ggml_backend_dev_t no_devices[] = {nullptr};
    llama_model_params model_params = llama_model_default_params();
    model_params.devices = no_devices;
    bare.model.reset(llama_model_load_from_file(path.c_str(), model_params));
    if (!bare.model) {
        throw pgl::Error("invalid_model", "llama.cpp refused the file");
    }
    pgl::kernels::measure_forms();
    ggml_threadpool_params pool_params = ggml_threadpool_params_default(n_threads);
    bare.pool.reset(ggml_threadpool_new(&pool_params));
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(n_ctx);
    params.n_batch = params.n_ubatch = kBatch;
    params.n_threads = params.n_threads_batch = n_threads;
    params.type_k = params.type_v = cache_type;
    params.no_perf = true;
    bare.context.reset(llama_init_from_model(bare.model.get(), params));
    if (!bare.context) {
        throw pgl::Error("out_of_memory", "the context could not be created");
    }
    llama_attach_threadpool(bare.context.get(), bare.pool.get(), bare.pool.get());
    return bare;
}
