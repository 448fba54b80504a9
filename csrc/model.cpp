#include "model.h"

#include "devices.h"
#include "gguf_check.h"
#include "kernels/kernels.h"
#include "log.h"
#include "machine.h"

#include <ggml-cpu.h>
#include <llama.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>

namespace pgl {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kMargin = 256 * kMiB;      // left to the rest of the process
constexpr int32_t kDefaultContext = 8192;     // as long as this by default where it fits
constexpr int32_t kContextStep = 256;         // llama.cpp pads to it
constexpr int32_t kMaxEmbedTokens = 2048;     // pooling wants a whole text in one pass: its buffers grow with it

std::string mib(uint64_t bytes) {
    return std::to_string(bytes / kMiB) + " MiB";
}

bool abort_requested(void * flag) {
    const bool requested = static_cast<const std::atomic<bool> *>(flag)->load(std::memory_order_relaxed);
    if (requested) {
        log::expect_abort(true);  // polled on the thread that called decode
    }
    return requested;
}

void check_options(const EngineOptions & options) {
    const auto require = [](bool ok, const char * name, int64_t value, const char * allowed) {
        if (!ok) {
            throw Error("invalid_request", std::string(name) + " must be " + allowed + ", got " + std::to_string(value),
                        {{"field", name}, {"value", std::to_string(value)}, {"allowed", allowed}});
        }
    };
    require(options.n_ctx >= 0 && options.n_ctx <= (1 << 24), "n_ctx", options.n_ctx, "0..16777216");
    require(options.max_streams >= 1 && options.max_streams <= 64, "max_streams", options.max_streams, "1..64");
    require(options.max_queue >= 0 && options.max_queue <= 100000, "max_queue", options.max_queue, "0..100000");
    require(options.n_threads >= 0 && options.n_threads <= 512, "n_threads", options.n_threads, "0..512");
    require(options.n_batch >= 32 && options.n_batch <= 8192, "n_batch", options.n_batch, "32..8192");
    require(options.n_gpu_layers >= -1 && options.n_gpu_layers <= 10000, "n_gpu_layers", options.n_gpu_layers, "-1..10000");
    require(options.prefix_cache_bytes >= -1 && options.prefix_cache_bytes <= (int64_t{1} << 44), "prefix_cache_bytes",
            options.prefix_cache_bytes, "-1..17592186044416");
}

}  // namespace

void Model::Free::operator()(llama_model * model) const { llama_model_free(model); }
void Model::Free::operator()(llama_context * context) const { llama_free(context); }
void Model::Free::operator()(ggml_threadpool * pool) const { ggml_threadpool_free(pool); }

Model::~Model() = default;

Model::Model(const std::string & path, const EngineOptions & options, const std::function<bool(float)> & on_progress,
             const std::atomic<bool> & abort)
    : options_(options), abort_(abort) {
    const auto start = std::chrono::steady_clock::now();
    check_options(options_);
    const GgufSummary summary = check_gguf(path);
    if (summary.vocab_only || summary.type != "model") {
        throw Error("invalid_model", "the file holds no model weights", {{"key", "general.type"}, {"value", summary.type}});
    }
    initialise_backends();
    if (options_.n_threads == 0) {
        options_.n_threads = machine::usable_threads();
    }
    plan_memory(summary);
    load(path, summary, on_progress);
    tokenizer_ = std::make_unique<Tokenizer>(llama_model_get_vocab(model_.get()));

    ggml_threadpool_params pool = ggml_threadpool_params_default(options_.n_threads);
    pool_.reset(ggml_threadpool_new(&pool));
    if (!pool_) {
        throw Error("out_of_memory", "the compute threads could not be started");
    }
    create_context();
    describe(path, summary);
    info_.load_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

// Settles device, layers and context length before anything is allocated; a model that cannot fit is refused here.
void Model::plan_memory(const GgufSummary & summary) {
    cache_bytes_per_token_ =
        options_.cache_type == CacheType::q8_0 ? summary.cache_bytes_q8_0 : summary.cache_bytes_f16;
    if (options_.cache_type == CacheType::q8_0 && !options_.flash_attention) {
        throw Error("invalid_request", "cache_type q8_0 needs flash_attention", {{"field", "cache_type"}});
    }

    const auto gpus = gpu_devices();
    if (options_.device == Device::gpu && gpus.empty()) {
        throw Error("invalid_request", "device is \"gpu\", and this build or machine has none", {{"field", "device"}});
    }
    const bool use_gpu = options_.device != Device::cpu && !gpus.empty() && options_.n_gpu_layers != 0;
    const int32_t n_layers = summary.n_layer + 1;  // llama.cpp counts the output layer
    uint64_t device_bytes = 0;
    for (ggml_backend_dev_t gpu : gpus) {
        size_t free_bytes = 0, total_bytes = 0;
        ggml_backend_dev_memory(gpu, &free_bytes, &total_bytes);
        device_bytes += free_bytes;
    }
    const uint64_t host_bytes = machine::available_bytes();
    const uint64_t compute = 64 * kMiB + static_cast<uint64_t>(options_.n_batch) * (static_cast<uint64_t>(summary.n_embd) * 64) +
                             static_cast<uint64_t>(options_.max_streams) * static_cast<uint64_t>(summary.n_vocab) * 8;
    const auto streams = static_cast<uint64_t>(options_.max_streams);

    // Weights that are only mapped can be reclaimed; repacked and read ones cannot. Ours are repacked, ggml's may be.
    const uint64_t weights = summary.tensor_bytes;
    uint64_t have = use_gpu ? std::max(host_bytes, device_bytes) : host_bytes;
    have -= std::min(have, kMargin);
    const uint64_t fixed = weights + compute;
    const uint64_t per_context_token = std::max<uint64_t>(1, cache_bytes_per_token_ * streams);
    const uint64_t room = have > fixed ? have - fixed : 0;
    const int32_t train = summary.n_ctx_train > 0 ? summary.n_ctx_train : kDefaultContext;
    const auto max_fit = static_cast<int32_t>(std::min<uint64_t>(room / per_context_token, 1 << 24));

    if (options_.n_ctx == 0) {
        // A quarter of the room, unless that leaves little to work with: the machine has other things to do.
        const auto share = static_cast<int32_t>(std::min<uint64_t>(room / 4 / per_context_token, 1 << 24));
        const int32_t n_ctx = std::min({train, kDefaultContext, std::max(share, std::min(2048, max_fit))});
        options_.n_ctx = std::max(n_ctx, std::min(kContextStep, train));
    } else if (options_.n_ctx > train) {
        log::write(log::warning, "n_ctx=" + std::to_string(options_.n_ctx) + " is beyond the " + std::to_string(train) +
                                     " tokens this model was trained for");
    }
    const uint64_t need = fixed + per_context_token * static_cast<uint64_t>(options_.n_ctx);
    if (need > have) {
        throw Error("out_of_memory",
                    "the model needs " + mib(need) + " with n_ctx=" + std::to_string(options_.n_ctx) + " and max_streams=" +
                        std::to_string(options_.max_streams) + ", and " + mib(have) + " are available",
                    {{"need", std::to_string(need)}, {"have", std::to_string(have)}, {"max_n_ctx", std::to_string(max_fit)}});
    }

    if (!use_gpu) {
        options_.n_gpu_layers = 0;
    } else if (options_.n_gpu_layers < 0) {
        const uint64_t per_layer =
            weights / static_cast<uint64_t>(n_layers) +
            per_context_token * static_cast<uint64_t>(options_.n_ctx) / static_cast<uint64_t>(n_layers) + 1;
        const uint64_t usable = device_bytes - std::min(device_bytes, kMargin + compute);
        options_.n_gpu_layers = static_cast<int32_t>(std::min<uint64_t>(usable / per_layer, static_cast<uint64_t>(n_layers)));
    }
    info_.n_gpu_layers = options_.n_gpu_layers;
}

void Model::load(const std::string & path, const GgufSummary & summary, const std::function<bool(float)> & on_progress) {
    llama_model_params params = llama_model_default_params();
    ggml_backend_dev_t no_devices[] = {nullptr};
    if (options_.n_gpu_layers == 0) {
        params.devices = no_devices;
    }
    params.n_gpu_layers = options_.n_gpu_layers;
    params.load_mode = options_.mmap ? LLAMA_LOAD_MODE_MMAP : LLAMA_LOAD_MODE_NONE;
    params.check_tensors = options_.check_tensors;
    params.no_host = options_.n_gpu_layers > 0 && options_.n_gpu_layers <= summary.n_layer;  // layers left to the CPU get our kernels
    struct Progress {
        const std::function<bool(float)> & report;
        std::string release;   // the mapped file, where its weights are copied and not computed on in place
        float step;            // of progress between two releases: each reads the process's list of mappings
        float released = 0;
        bool stopped = false;
    } progress{on_progress, options_.kernels && options_.mmap && options_.n_gpu_layers == 0 ? path : "",
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
        throw Error("invalid_model", "llama.cpp refused the file; its log says why (logger polargrid_local.llama)");
    }
    for (const auto & [file, scale] : options_.lora) {
        check_gguf(file, GgufRole::adapter);
        llama_adapter_lora * adapter = llama_adapter_lora_init(model_.get(), file.c_str());
        if (adapter == nullptr) {
            throw Error("invalid_model", "the LoRA adapter does not fit this model", {{"kind", "lora"}});
        }
        adapters_.push_back(adapter);
        adapter_scales_.push_back(scale);
    }
}

void Model::create_context() {
    context_.reset();
    llama_context_params params = llama_context_default_params();
    const auto streams = static_cast<uint32_t>(options_.max_streams);
    params.n_ctx = static_cast<uint32_t>((options_.n_ctx + kContextStep - 1) / kContextStep * kContextStep) * streams;
    params.n_batch = params.n_ubatch = static_cast<uint32_t>(options_.n_batch);
    params.n_seq_max = streams;
    params.n_outputs_max = streams;
    // One stream of cells per sequence: a sequence's cells are its positions in order, alone or among others, so its
    // results do not depend on its neighbours.
    params.kv_unified = false;
    params.n_threads = params.n_threads_batch = options_.n_threads;
    params.flash_attn_type = options_.flash_attention ? LLAMA_FLASH_ATTN_TYPE_AUTO : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.type_k = params.type_v = options_.cache_type == CacheType::q8_0 ? GGML_TYPE_Q8_0 : GGML_TYPE_F16;
    params.abort_callback = abort_requested;
    params.abort_callback_data = const_cast<std::atomic<bool> *>(&abort_);
    params.no_perf = true;
    context_.reset(llama_init_from_model(model_.get(), params));
    if (!context_) {
        throw Error("out_of_memory", "the context could not be created; its log says why (logger polargrid_local.llama)");
    }
    llama_attach_threadpool(context_.get(), pool_.get(), pool_.get());
    if (!adapters_.empty()) {
        llama_set_adapters_lora(context_.get(), adapters_.data(), adapters_.size(), adapter_scales_.data());
    }
}

void Model::describe(const std::string & path, const GgufSummary & summary) {
    const llama_vocab * vocab = llama_model_get_vocab(model_.get());
    info_.path = path;
    info_.architecture = summary.architecture;
    char description[256] = {};
    llama_model_desc(model_.get(), description, sizeof description);
    info_.description = description;
    info_.quantization = summary.quantization;
    info_.chat_template = summary.chat_template;
    info_.bos_text = tokenizer_->literal(llama_vocab_bos(vocab));
    info_.eos_text = tokenizer_->literal(llama_vocab_eos(vocab));
    info_.add_bos = llama_vocab_get_add_bos(vocab);
    info_.n_params = llama_model_n_params(model_.get());
    info_.file_bytes = summary.file_bytes;
    info_.weights_bytes = summary.tensor_bytes;
    info_.n_ctx = std::min(static_cast<int32_t>(llama_n_ctx_seq(context_.get())), options_.n_ctx);
    info_.cache_bytes = cache_bytes_per_token_ * llama_n_ctx_seq(context_.get()) * static_cast<uint64_t>(options_.max_streams);
    info_.n_ctx_train = llama_model_n_ctx_train(model_.get());
    info_.n_vocab = llama_vocab_n_tokens(vocab);
    info_.n_embd = llama_model_n_embd(model_.get());
    info_.n_layer = llama_model_n_layer(model_.get());
    info_.max_streams = options_.max_streams;
    info_.n_threads = options_.n_threads;
    info_.n_batch = options_.n_batch;
    info_.flash_attention = options_.flash_attention;
    info_.cache_type = options_.cache_type == CacheType::q8_0 ? "q8_0" : "f16";
    info_.can_embed = options_.embeddings;
    info_.kernels = options_.kernels ? kernels::isa() : "off";
    info_.build = build_id();
    info_.devices = list_devices();
    info_.metadata = summary.metadata;
}

bool Model::decode(const Batch & batch) {
    const auto n = static_cast<int32_t>(batch.rows.size());
    std::vector<Token> tokens(batch.rows.size());
    std::vector<llama_pos> positions(batch.rows.size());
    std::vector<int32_t> n_sequences(batch.rows.size(), 1);
    std::vector<llama_seq_id> sequences(batch.rows.size());
    std::vector<llama_seq_id *> sequence_lists(batch.rows.size());
    std::vector<int8_t> outputs(batch.rows.size());
    for (size_t i = 0; i < batch.rows.size(); ++i) {
        const Batch::Row & row = batch.rows[i];
        tokens[i] = row.token;
        positions[i] = row.position;
        sequences[i] = row.sequence;
        sequence_lists[i] = &sequences[i];
        outputs[i] = row.logits ? 1 : 0;
    }
    llama_batch native{n, tokens.data(), nullptr, positions.data(), n_sequences.data(), sequence_lists.data(), outputs.data()};
    std::string fault;
    try {
        const int32_t status = llama_decode(context_.get(), native);
        log::expect_abort(false);
        if (status == 0) {
            return true;
        }
        if (status == 2) {
            return false;
        }
        fault = "llama_decode returned " + std::to_string(status);
    } catch (const std::bad_alloc &) {
        create_context();
        throw Error("out_of_memory", "memory ran out while computing");
    } catch (const std::exception & e) {
        fault = e.what();
    }
    create_context();  // whatever failed inside is not reused
    throw Error("internal_error", "the computation failed: " + fault);
}

float * Model::logits(int32_t row) {
    float * values = llama_get_logits_ith(context_.get(), row);
    if (values == nullptr) {
        throw Error("internal_error", "no logits for batch row " + std::to_string(row));
    }
    return values;
}

bool Model::can_trim() const {
    return !llama_model_is_recurrent(model_.get()) && !llama_model_is_hybrid(model_.get());
}

bool Model::trim(int32_t sequence, int32_t n_tokens) {
    llama_memory_t memory = llama_get_memory(context_.get());
    if (llama_memory_seq_rm(memory, sequence, n_tokens, -1)) {
        return true;
    }
    llama_memory_seq_rm(memory, sequence, -1, -1);
    return n_tokens == 0;
}

std::vector<uint8_t> Model::snapshot(int32_t sequence) const {
    std::vector<uint8_t> data(llama_state_seq_get_size(context_.get(), sequence));
    data.resize(llama_state_seq_get_data(context_.get(), data.data(), data.size(), sequence));
    return data;
}

bool Model::restore(int32_t sequence, const std::vector<uint8_t> & snapshot) {
    if (llama_state_seq_set_data(context_.get(), snapshot.data(), snapshot.size(), sequence) == snapshot.size()) {
        return true;
    }
    trim(sequence, 0);
    return false;
}

int32_t Model::max_embed_tokens() const {
    return std::min(kMaxEmbedTokens, std::max(1, info_.n_ctx_train));
}

std::vector<float> Model::embed(const std::vector<Token> & tokens) {
    if (!embedder_) {
        llama_context_params params = llama_context_default_params();
        params.n_ctx = params.n_batch = params.n_ubatch = static_cast<uint32_t>(max_embed_tokens());
        params.n_seq_max = 1;
        params.n_threads = params.n_threads_batch = options_.n_threads;
        params.embeddings = true;
        params.no_perf = true;
        params.abort_callback = abort_requested;
        params.abort_callback_data = const_cast<std::atomic<bool> *>(&abort_);
        embedder_.reset(llama_init_from_model(model_.get(), params));
        if (embedder_ && llama_pooling_type(embedder_.get()) == LLAMA_POOLING_TYPE_NONE) {
            params.pooling_type = LLAMA_POOLING_TYPE_MEAN;
            embedder_.reset(llama_init_from_model(model_.get(), params));
        }
        if (!embedder_) {
            throw Error("out_of_memory", "the embedding context could not be created");
        }
        llama_attach_threadpool(embedder_.get(), pool_.get(), pool_.get());
    }
    std::vector<Token> copy = tokens;
    if (llama_memory_t memory = llama_get_memory(embedder_.get()); memory != nullptr) {
        llama_memory_clear(memory, false);
    }
    try {
        const llama_batch batch = llama_batch_get_one(copy.data(), static_cast<int32_t>(copy.size()));
        const int32_t status = llama_get_memory(embedder_.get()) != nullptr ? llama_decode(embedder_.get(), batch)
                                                                            : llama_encode(embedder_.get(), batch);
        log::expect_abort(false);
        if (status == 2) {
            throw Error("cancelled", "the request was cancelled");
        }
        const float * values = status == 0 ? llama_get_embeddings_seq(embedder_.get(), 0) : nullptr;
        if (values == nullptr) {
            throw Error("internal_error", "the embedding could not be computed (" + std::to_string(status) + ")");
        }
        std::vector<float> embedding(values, values + llama_model_n_embd_out(model_.get()));
        double sum = 0;
        for (const float value : embedding) {
            sum += static_cast<double>(value) * value;
        }
        if (!std::isfinite(sum)) {
            throw Error("numeric_error", "the embedding holds NaN or infinity");
        }
        const auto scale = static_cast<float>(sum > 0 ? 1 / std::sqrt(sum) : 0);
        for (float & value : embedding) {
            value *= scale;
        }
        return embedding;
    } catch (...) {
        embedder_.reset();
        throw;
    }
}

}  // namespace pgl
