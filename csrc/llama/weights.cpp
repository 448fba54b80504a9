#include "llama/weights.h"

#include "gguf/adapter.h"
#include "gguf/check.h"
#include "kernels/kernels.h"
#include "llama/devices.h"
#include "llama/log.h"
#include "llama/memory_plan.h"
#include "platform/machine.h"

#include <ggml-cpu.h>
#include <llama.h>

#include <algorithm>
#include <cmath>

namespace pgl {
namespace {

bool abort_requested(void * data) {
    const Abort & abort = *static_cast<const Abort *>(data);
    abort.note_progress();
    const bool requested = abort.requested.load(std::memory_order_relaxed);
    if (requested) {
        log::expect_abort(true);  // polled on the thread that called decode
    }
    return requested;
}

}  // namespace

void FreeHandle::operator()(llama_model * model) const {
    llama_model_free(model);
}
void FreeContext::operator()(llama_context * context) const {
    if (!weights->lost()) {
        llama_free(context);
    }
}
void FreeHandle::operator()(ggml_threadpool * pool) const {
    ggml_threadpool_free(pool);
}

Weights::Weights(const std::string & path, const GgufSummary & summary, const EngineOptions & options,
                 const MemoryPlan & plan, const std::vector<ggml_backend_dev_t> & gpus,
                 const std::function<bool(float)> & on_progress, const Abort & abort, bool dry)
    : options_(options), abort_(abort), dry_(dry) {
    load(path, summary, plan, gpus, on_progress);
    if (!dry) {
        load_adapters(path);
        start_threads();
    }
}

Weights::~Weights() {
    if (lost_) {
        (void)model_.release();
    }
}

void Weights::load(const std::string & path, const GgufSummary & summary, const MemoryPlan & plan,
                   const std::vector<ggml_backend_dev_t> & gpus, const std::function<bool(float)> & on_progress) {
    llama_model_params params = llama_model_default_params();
    // Shares of the GPUs in the layers, which llama.cpp deals out by: whole numbers, so that the plan is met exactly.
    std::vector<float> shares(llama_max_devices(), 0);
    size_t layer = summary.layers.size() + 1 - static_cast<size_t>(plan.n_gpu_layers);
    for (size_t i = 0; i < plan.layers_of_gpu.size(); ++i) {
        if (plan.layers_of_gpu[i] == 0) {
            continue;
        }
        shares[gpus_.size()] = static_cast<float>(plan.layers_of_gpu[i]);
        gpus_.push_back(gpus[i]);
        for (int32_t n = 0; n < plan.layers_of_gpu[i]; ++n, ++layer) {
            on_gpus_[ggml_backend_dev_name(gpus[i])] +=
                layer < summary.layers.size() ? summary.layers[layer].weights_bytes : summary.output_bytes;
        }
    }
    std::vector<ggml_backend_dev_t> devices = gpus_;
    devices.push_back(nullptr);
    params.devices = devices.data();
    params.n_gpu_layers = plan.n_gpu_layers;
    params.tensor_split = shares.data();
    // Weights that are computed on where they are mapped must lie as ggml wants them.
    constexpr uint32_t kTensorAlignment = 32;
    const bool mmap = options_.mmap && summary.alignment % kTensorAlignment == 0;
    if (mmap != options_.mmap) {
        log::write(log::info, "the file aligns its tensors to " + std::to_string(summary.alignment) +
                                  " bytes, too few to map it: it is read instead");
    }
    params.load_mode = mmap && !dry_ ? LLAMA_LOAD_MODE_MMAP : LLAMA_LOAD_MODE_NONE;
    params.no_alloc = dry_;
    params.check_tensors = options_.check_tensors;
    // Layers left to the CPU get our kernels, not memory that a GPU could read.
    params.no_host = plan.n_gpu_layers > 0 && plan.n_gpu_layers <= static_cast<int32_t>(summary.layers.size());
    struct Progress {
        const std::function<bool(float)> & report;
        std::string release;   // the mapped file: its pages are given back while it loads; used ones are read again
        float step;            // of progress between two releases: each reads the process's list of mappings
        float released = 0;
        bool stopped = false;
    } progress{on_progress, mmap && plan.n_gpu_layers == 0 ? path : "",
               std::max(0.02f, static_cast<float>(64 * kMiB) / static_cast<float>(summary.file_bytes))};
    params.progress_callback_user_data = &progress;
    params.progress_callback = [](float value, void * data) {
        auto & p = *static_cast<Progress *>(data);
        if (!p.release.empty() && (value - p.released >= p.step || value >= 1)) {
            p.released = value;
            machine::release_mapped_pages(p.release);  // or the peak would be file and copy together
        }
        p.stopped = p.stopped || !p.report(value);
        return !p.stopped;
    };
    kernels::set_enabled(options_.kernels);
    model_.reset(llama_model_load_from_file(path.c_str(), params));
    if (!model_) {
        if (progress.stopped) {
            throw Error("cancelled", "the load was cancelled");
        }
        const std::string why = log::complaint(path);
        if (why.find("unable to allocate") != std::string::npos) {
            throw Error("out_of_memory", "memory ran out while loading the model: " + why);
        }
        throw Error("invalid_model", "llama.cpp refused the file: " + why);
    }
}

void Weights::load_adapters(const std::string & path) {
    for (const auto & [file, scale] : options_.lora) {
        if (!std::isfinite(scale)) {
            throw Error("invalid_request", "lora: a scale must be a finite number", {{"field", "lora"}});
        }
        try {
            check_adapter(file, path);
        } catch (Error & e) {
            e.details["adapter"] = file;
            throw;
        }
        llama_adapter_lora * adapter = llama_adapter_lora_init(model_.get(), file.c_str());
        if (adapter == nullptr) {
            throw Error("invalid_model", "the LoRA adapter does not fit this model: " + log::complaint(file),
                        {{"kind", "lora"}, {"adapter", file}});
        }
        adapters_.push_back(adapter);
        adapter_scales_.push_back(scale);
    }
}

// The OpenMP run-time that ggml computes with ends the process when it cannot start a thread, so they are tried first
// and started here, where a lack of them can still be told.
void Weights::start_threads() {
    const int32_t n_threads = options_.n_threads;
    if (n_threads > 1 && !machine::can_start_threads(n_threads)) {
        throw Error("out_of_memory",
                    std::to_string(n_threads) +
                        " compute threads cannot be started: this process's limits on threads or memory"
                        " are reached; give n_threads a smaller number",
                    {{"field", "n_threads"}, {"value", std::to_string(n_threads)}});
    }
    ggml_threadpool_params pool = ggml_threadpool_params_default(n_threads);
    pool_.reset(ggml_threadpool_new(&pool));
    if (!pool_) {
        throw Error("out_of_memory", "the compute threads could not be started");
    }
    ggml_init_params params{kMiB, nullptr, false};
    const std::unique_ptr<ggml_context, void (*)(ggml_context *)> scratch(ggml_init(params), ggml_free);
    ggml_tensor * ones = ggml_new_tensor_1d(scratch.get(), GGML_TYPE_F32, n_threads);
    ggml_set_zero(ones);
    ggml_cgraph * graph = ggml_new_graph(scratch.get());
    ggml_build_forward_expand(graph, ggml_add(scratch.get(), ones, ones));
    ggml_graph_compute_with_ctx(scratch.get(), graph, n_threads);
}

ContextPtr Weights::make_context(llama_context_params params, const std::string & name) {
    params.n_threads = params.n_threads_batch = options_.n_threads;
    params.flash_attn_type = options_.flash_attention ? LLAMA_FLASH_ATTN_TYPE_AUTO : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    // Our kernels' weights are in a form that no GPU reads, so that lending it the small operations between them would
    // only move activations back and forth.
    params.op_offload = !options_.kernels;
    params.abort_callback = abort_requested;
    params.abort_callback_data = const_cast<Abort *>(&abort_);
    params.no_perf = true;
    ContextPtr context(nullptr, FreeContext{this});
    try {
        context.reset(llama_init_from_model(model_.get(), params));
    } catch (const std::exception & e) {
        throw failed(context, e.what());
    }
    if (!context) {
        throw Error("out_of_memory", name + " could not be created: " + log::complaint());
    }
    if (pool_) {
        llama_attach_threadpool(context.get(), pool_.get(), pool_.get());
    }
    set_adapters(context.get(), adapter_scales_);
    return context;
}

void Weights::set_adapters(llama_context * context, AdapterScales scales) {
    if (!adapters_.empty()) {
        llama_set_adapters_lora(context, adapters_.data(), adapters_.size(), scales.data());
    }
}

Error Weights::failed(ContextPtr & context, const std::string & why) {
    const auto says = [&](const char * text) { return why.find(text) != std::string::npos; };
    // Asked first: to find out whether a GPU still works takes a little of its memory.
    if (says("out of memory") || says("OutOfDeviceMemory") || says("OutOfHostMemory") || says("memory ran out")) {
        context.reset();
        return Error("out_of_memory", "memory ran out while computing: " + why);
    }
    for (ggml_backend_dev_t gpu : gpus_) {
        if (!still_works(gpu)) {
            lost_ = true;
            (void)context.release();
            return Error("device_lost",
                         std::string("the GPU ") + ggml_backend_dev_name(gpu) + " (" +
                             ggml_backend_dev_description(gpu) + ") stopped working: " + why +
                             "; it can be used again in a new process",
                         {{"device", ggml_backend_dev_name(gpu)}});
        }
    }
    context.reset();
    return Error("internal_error", "the computation failed: " + why);
}

}  // namespace pgl
