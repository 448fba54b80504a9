// Weights: a model file in memory, on the CPU or on GPUs, with its adapters and compute threads; what contexts are made
// of.
#pragma once

#include "llama/abort.h"
#include "request.h"

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

struct ggml_backend_device;
struct llama_adapter_lora;
struct llama_context;
struct llama_context_params;
struct llama_model;
struct ggml_threadpool;

namespace pgl {

struct GgufSummary;
struct MemoryPlan;
class Weights;

struct FreeHandle {
    void operator()(llama_model * model) const;
    void operator()(ggml_threadpool * pool) const;
};
// Nothing is freed of what lies on a lost GPU: its driver would throw out of the destructor.
struct FreeContext {
    const Weights * weights = nullptr;
    void operator()(llama_context * context) const;
};
using ContextPtr = std::unique_ptr<llama_context, FreeContext>;  // must not outlive its weights

class Weights {
  public:
    // `options`: n_threads is settled. `gpus`: those that the plan's layers_of_gpu speaks of. `dry`: nothing is read or
    // allocated but the header, so that nothing can be computed: for contexts that tell their size. `on_progress(0..1)`
    // returns false to stop. `abort` is polled between the nodes of every computation of every context (CPU); it must
    // outlive them. Throws Error: invalid_model, out_of_memory, invalid_request, cancelled; not_found for an adapter.
    Weights(const std::string & path, const GgufSummary & summary, const EngineOptions & options,
            const MemoryPlan & plan, const std::vector<ggml_backend_device *> & gpus,
            const std::function<bool(float)> & on_progress, const Abort & abort, bool dry = false);
    ~Weights();
    Weights(const Weights &) = delete;
    Weights & operator=(const Weights &) = delete;

    llama_model * model() const { return model_.get(); }
    const std::vector<ggml_backend_device *> & gpus() const { return gpus_; }  // that hold layers
    std::map<std::string, uint64_t> weights_on_gpus() const { return on_gpus_; }  // bytes, by name
    bool lost() const { return lost_; }  // a GPU of theirs is: nothing can be computed any more

    // A context of these weights: `params` with threads, attention and abort filled in, adapters applied as they were
    // loaded. `name` is its name in Error("out_of_memory").
    ContextPtr make_context(llama_context_params params, const std::string & name);

    const AdapterScales & adapter_scales() const { return adapter_scales_; }  // of the load
    // What a context computes from now on, it computes with the adapters at these scales.
    void set_adapters(llama_context * context, AdapterScales scales);

    // For the catch of a computation that threw or failed: drops its context, which is not used again, and returns the
    // error to throw. "out_of_memory" and "internal_error" leave weights that contexts can be made of; "device_lost"
    // does not.
    Error failed(ContextPtr & context, const std::string & why);

  private:
    void load(const std::string & path, const GgufSummary & summary, const MemoryPlan & plan,
              const std::vector<ggml_backend_device *> & gpus, const std::function<bool(float)> & on_progress);
    void load_adapters(const std::string & path);
    void start_threads();

    const EngineOptions & options_;
    const Abort & abort_;
    const bool dry_;
    std::vector<ggml_backend_device *> gpus_;
    std::map<std::string, uint64_t> on_gpus_;
    bool lost_ = false;
    std::unique_ptr<llama_model, FreeHandle> model_;
    std::vector<llama_adapter_lora *> adapters_;  // freed with the model
    AdapterScales adapter_scales_;
    std::unique_ptr<ggml_threadpool, FreeHandle> pool_;
};

}  // namespace pgl
