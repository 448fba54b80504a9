// Weights: a model file in memory with its adapters and compute threads; what contexts are made of.
#pragma once

#include "request.h"

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

struct llama_adapter_lora;
struct llama_context;
struct llama_context_params;
struct llama_model;
struct ggml_threadpool;

namespace pgl {

struct GgufSummary;

struct FreeHandle {
    void operator()(llama_model * model) const;
    void operator()(llama_context * context) const;
    void operator()(ggml_threadpool * pool) const;
};
using ContextPtr = std::unique_ptr<llama_context, FreeHandle>;

class Weights {
  public:
    // `options`: n_threads and n_gpu_layers are settled. `on_progress(0..1)` returns false to stop. `abort` is polled
    // between the nodes of every computation of every context (CPU); it must outlive them.
    // Throws Error: invalid_model, out_of_memory, invalid_request, cancelled; not_found for an adapter.
    Weights(const std::string & path, const GgufSummary & summary, const EngineOptions & options,
            const std::function<bool(float)> & on_progress, const std::atomic<bool> & abort);

    llama_model * model() const { return model_.get(); }

    // A context of these weights: `params` with threads, attention and abort filled in, adapters applied. `name` is
    // its name in Error("out_of_memory").
    ContextPtr make_context(llama_context_params params, const std::string & name);

  private:
    void load(const std::string & path, const GgufSummary & summary, const std::function<bool(float)> & on_progress);
    void load_adapters(const std::string & path);
    void start_threads();

    const EngineOptions & options_;
    const std::atomic<bool> & abort_;
    std::unique_ptr<llama_model, FreeHandle> model_;
    std::vector<llama_adapter_lora *> adapters_;   // freed with the model
    std::vector<float> adapter_scales_;
    std::unique_ptr<ggml_threadpool, FreeHandle> pool_;
};

}  // namespace pgl
