#include "llama/model.h"

#include "gguf/check.h"
#include "kernels/kernels.h"
#include "llama/devices.h"
#include "llama/log.h"
#include "platform/machine.h"
#include "ranges.h"

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
constexpr int32_t kPoolerStep = 512;          // tokens: shorter texts share one pooler
constexpr uint64_t kPooledLogits =
    64 * kMiB; // llama.cpp computes logits for every token that it embeds: so many at once

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

// What llama.cpp complained about last, for a message of ours: without its function names, and without the folder.
std::string complaint(const std::string & path) {
    std::string text = log::complaint();
    const size_t slash = path.find_last_of("/\\");
    const std::string folder = path.substr(0, slash == std::string::npos ? 0 : slash + 1);
    for (size_t at; !folder.empty() && (at = text.find(folder)) != std::string::npos;) {
        text.erase(at, folder.size());
    }
    return text.empty() ? "it does not say why" : text;
}

}  // namespace

void Model::Free::operator()(llama_model * model) const {
    llama_model_free(model);
}
void Model::Free::operator()(llama_context * context) const {
    llama_free(context);
}
void Model::Free::operator()(ggml_threadpool * pool) const {
    ggml_threadpool_free(pool);
}

Model::~Model() = default;

Model::Model(const std::string & path, const EngineOptions & options, const std::function<bool(float)> & on_progress,
             const std::atomic<bool> & abort)
    : options_(options), abort_(abort) {
    const auto start = std::chrono::steady_clock::now();
    check_ranges(options_);
    const GgufSummary summary = check_gguf(path);
    if (summary.vocab_only || summary.type != "model") {
        throw Error("invalid_model", "the file holds no model weights",
                    {{"key", "general.type"}, {"value", summary.type}});
    }
    if (summary.tasks.empty()) {
        throw Error("invalid_model",
                    "a model of architecture " + summary.architecture +
                        " cannot generate, embed or rank text by itself: it is a part of another model or system, or a"
                        " classifier without its head",
                    {{"key", "general.architecture"}, {"value", summary.architecture}});
    }
    info_.tasks = summary.tasks;
    if (!options_.embeddings) {
        info_.tasks.erase(std::remove(info_.tasks.begin(), info_.tasks.end(), Task::embed), info_.tasks.end());
    }
    n_head_ = static_cast<uint64_t>(summary.n_head);
    cache_bytes_f16_ = summary.cache_bytes_f16;
    pooling_ = summary.pooling;
    whole_text_ = summary.whole_text;
    initialise_backends();
    if (options_.n_threads == 0) {
        options_.n_threads = machine::usable_threads();
    }
    plan_memory(summary);
    load(path, summary, on_progress);
    load_adapters(path);
    tokenizer_ = std::make_unique<Tokenizer>(llama_model_get_vocab(model_.get()), summary.pre_tokenizer);
    create_pool();
    if (can(Task::generate)) {
        create_context();
    }
    describe(path, summary);
    info_.load_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

bool Model::can(Task task) const {
    return std::find(info_.tasks.begin(), info_.tasks.end(), task) != info_.tasks.end();
}

// The OpenMP run-time that ggml computes with ends the process when it cannot start a thread, so they are tried first
// and started here, where a lack of them can still be told.
void Model::create_pool() {
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

// Settles device, layers and context length before anything is allocated; a model that cannot fit is refused here.
void Model::plan_memory(const GgufSummary & summary) {
    if (can(Task::generate)) {   // others have no cache
        cache_bytes_per_token_ =
            options_.cache_type == CacheType::q8_0 ? summary.cache_bytes_q8_0 : summary.cache_bytes_f16;
    }
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
    const uint64_t compute = 64 * kMiB +
                             static_cast<uint64_t>(options_.n_batch) * (static_cast<uint64_t>(summary.n_embd) * 64) +
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
        throw Error(
            "out_of_memory",
            "the model needs " + mib(need) + " with n_ctx=" + std::to_string(options_.n_ctx) +
                " and max_streams=" + std::to_string(options_.max_streams) + ", and " + mib(have) + " are available",
            {{"need", std::to_string(need)}, {"have", std::to_string(have)}, {"max_n_ctx", std::to_string(max_fit)}});
    }

    if (!use_gpu) {
        options_.n_gpu_layers = 0;
    } else if (options_.n_gpu_layers < 0) {
        const uint64_t per_layer =
            weights / static_cast<uint64_t>(n_layers) +
            per_context_token * static_cast<uint64_t>(options_.n_ctx) / static_cast<uint64_t>(n_layers) + 1;
        const uint64_t usable = device_bytes - std::min(device_bytes, kMargin + compute);
        options_.n_gpu_layers =
            static_cast<int32_t>(std::min<uint64_t>(usable / per_layer, static_cast<uint64_t>(n_layers)));
    }
    info_.n_gpu_layers = options_.n_gpu_layers;
}

void Model::load(const std::string & path, const GgufSummary & summary,
                 const std::function<bool(float)> & on_progress) {
    llama_model_params params = llama_model_default_params();
    ggml_backend_dev_t no_devices[] = {nullptr};
    if (options_.n_gpu_layers == 0) {
        params.devices = no_devices;
    }
    params.n_gpu_layers = options_.n_gpu_layers;
    // Weights that are computed on where they are mapped must lie as ggml wants them.
    constexpr uint32_t kTensorAlignment = 32;
    const bool mmap = options_.mmap && summary.alignment % kTensorAlignment == 0;
    if (mmap != options_.mmap) {
        log::write(log::info, "the file aligns its tensors to " + std::to_string(summary.alignment) +
                                  " bytes, too few to map it: it is read instead");
    }
    params.load_mode = mmap ? LLAMA_LOAD_MODE_MMAP : LLAMA_LOAD_MODE_NONE;
    params.check_tensors = options_.check_tensors;
    params.no_host = options_.n_gpu_layers > 0 &&
                     options_.n_gpu_layers <= summary.n_layer;  // layers left to the CPU get our kernels
    struct Progress {
        const std::function<bool(float)> & report;
        std::string release;   // the mapped file, where its weights are copied and not computed on in place
        float step;            // of progress between two releases: each reads the process's list of mappings
        float released = 0;
        bool stopped = false;
    } progress{on_progress, options_.kernels && mmap && options_.n_gpu_layers == 0 ? path : "",
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
        throw Error("invalid_model", "llama.cpp refused the file: " + complaint(path));
    }
}

void Model::load_adapters(const std::string & path) {
    for (const auto & [file, scale] : options_.lora) {
        if (!std::isfinite(scale)) {
            throw Error("invalid_request", "lora: a scale must be a finite number", {{"field", "lora"}});
        }
        check_adapter(file, path);
        llama_adapter_lora * adapter = llama_adapter_lora_init(model_.get(), file.c_str());
        if (adapter == nullptr) {
            throw Error("invalid_model", "the LoRA adapter does not fit this model: " + complaint(file),
                        {{"kind", "lora"}});
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
        throw Error("out_of_memory", "the context could not be created: " + complaint(""));
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
    describe_special_tokens(summary);
    info_.add_bos = llama_vocab_get_add_bos(vocab);
    info_.n_params = llama_model_n_params(model_.get());
    info_.file_bytes = summary.file_bytes;
    info_.weights_bytes = summary.tensor_bytes;
    info_.n_ctx_train = llama_model_n_ctx_train(model_.get());
    info_.n_ctx = info_.n_ctx_train;
    if (context_) {
        const uint32_t n_cells = llama_n_ctx_seq(context_.get());
        info_.n_ctx = std::min(static_cast<int32_t>(n_cells), options_.n_ctx);
        info_.cache_bytes = cache_bytes_per_token_ * n_cells * static_cast<uint64_t>(options_.max_streams);
        // A conversation of full length must fit, and beyond that no more than the model itself is worth.
        const uint64_t worth = std::max(summary.tensor_bytes, cache_bytes_per_token_ * n_cells);
        info_.prefix_cache_bytes = options_.prefix_cache_bytes < 0 ? std::min(worth, machine::available_bytes() / 8)
                                                                   : static_cast<uint64_t>(options_.prefix_cache_bytes);
    }
    info_.longest_piece = static_cast<int32_t>(tokenizer_->longest_piece());
    info_.labels = summary.labels;
    info_.rerank_template = summary.rerank_template;
    info_.n_vocab = llama_vocab_n_tokens(vocab);
    info_.n_embd = llama_model_n_embd(model_.get());
    info_.n_layer = llama_model_n_layer(model_.get());
    info_.max_streams = options_.max_streams;
    info_.n_threads = options_.n_threads;
    info_.n_batch = options_.n_batch;
    info_.flash_attention = options_.flash_attention;
    info_.cache_type = name_of(options_.cache_type);
    info_.kernels = options_.kernels ? kernels::isa() : "off";
    info_.build = build_id();
    info_.devices = list_devices();
    info_.metadata = summary.metadata;
}

// By the names that chat templates use for them.
void Model::describe_special_tokens(const GgufSummary & summary) {
    const llama_vocab * vocab = llama_model_get_vocab(model_.get());
    const auto of_file = [&](const char * key) -> Token {
        const auto found = summary.metadata.find(key);
        const bool number = found != summary.metadata.end() && !found->second.empty() && found->second.size() < 10 &&
                            found->second.find_first_not_of("0123456789") == std::string::npos;
        return number ? std::stoi(found->second) : -1;
    };
    const std::pair<const char *, Token> named[] = {
        {"bos_token", llama_vocab_bos(vocab)},
        {"eos_token", llama_vocab_eos(vocab)},
        {"eot_token", llama_vocab_eot(vocab)},
        {"eom_token", of_file("tokenizer.ggml.eom_token_id")},
        {"sep_token", llama_vocab_sep(vocab)},
        {"pad_token", llama_vocab_pad(vocab)},
        {"mask_token", llama_vocab_mask(vocab)},
        {"unk_token", of_file("tokenizer.ggml.unknown_token_id")},
        {"cls_token", of_file("tokenizer.ggml.cls_token_id")},
    };
    for (const auto & [name, token] : named) {
        if (const std::string text = tokenizer_->literal(token); !text.empty()) {
            info_.special_tokens[name] = text;
        }
    }
    for (Token token = 0; token < tokenizer_->n_vocab(); ++token) {
        const bool is_named =
            std::any_of(std::begin(named), std::end(named), [&](const auto & entry) { return entry.second == token; });
        if (!is_named && (llama_vocab_get_attr(vocab, token) & LLAMA_TOKEN_ATTR_CONTROL) != 0) {
            info_.additional_special_tokens.push_back(tokenizer_->literal(token));
        }
    }
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
    llama_batch native{
        n, tokens.data(), nullptr, positions.data(), n_sequences.data(), sequence_lists.data(), outputs.data()};
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

std::vector<float> Model::embed(const std::vector<Token> & tokens) {
    std::vector<float> embedding = pooled(tokens);
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
}

std::vector<float> Model::rank(const std::vector<Token> & tokens) {
    std::vector<float> scores = pooled(tokens);
    if (!std::all_of(scores.begin(), scores.end(), [](float score) { return std::isfinite(score); })) {
        throw Error("numeric_error", "a score is NaN or infinity");
    }
    return scores;
}

// A context for texts of at least `n_tokens`. Its buffers grow with the text, so it is no larger than was asked for.
void Model::create_pooler(int32_t n_tokens) {
    if (pooler_ && n_tokens <= n_pooler_) {
        return;
    }
    pooler_.reset();
    n_pooler_ =
        std::min((n_tokens + kPoolerStep - 1) / kPoolerStep * kPoolerStep, std::max(n_tokens, max_pooled_tokens()));
    const auto n_vocab = static_cast<uint64_t>(info_.n_vocab);
    const auto n_embd = static_cast<uint64_t>(info_.n_embd);
    const uint64_t n_text = static_cast<uint64_t>(n_pooler_);
    const uint64_t chunk = std::clamp<uint64_t>(kPooledLogits / (4 * n_vocab), 32, 512);
    const uint64_t n_pass = whole_text_ ? n_text : std::min(chunk, n_text);
    // Every token of a pass takes activations and logits; every pair of tokens an entry of the mask, and of each head's
    // scores where attention is computed the plain way.
    const uint64_t per_pair = 6 + (options_.flash_attention ? 0 : 8 * std::max<uint64_t>(1, n_head_));
    const uint64_t need = kMargin / 2 + n_pass * (64 * n_embd + 8 * n_vocab) + n_pass * n_text * per_pair +
                          (whole_text_ ? 0 : n_text * cache_bytes_f16_);
    const uint64_t have = machine::available_bytes();
    if (need > have) {
        throw Error("out_of_memory",
                    "a text of " + std::to_string(n_tokens) + " tokens needs " + mib(need) + " beside the model, and " +
                        mib(have) + " are available",
                    {{"need", std::to_string(need)}, {"have", std::to_string(have)}});
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(n_text);
    params.n_batch = params.n_ubatch = static_cast<uint32_t>(n_pass);
    params.n_seq_max = 1;
    params.n_threads = params.n_threads_batch = options_.n_threads;
    params.flash_attn_type = options_.flash_attention ? LLAMA_FLASH_ATTN_TYPE_AUTO : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.embeddings = true;
    params.no_perf = true;
    params.abort_callback = abort_requested;
    params.abort_callback_data = const_cast<std::atomic<bool> *>(&abort_);
    if (whole_text_ && pooling_ <= LLAMA_POOLING_TYPE_NONE) {
        params.pooling_type = LLAMA_POOLING_TYPE_MEAN;
    } else if (!whole_text_ && pooling_ >= LLAMA_POOLING_TYPE_NONE && pooling_ != LLAMA_POOLING_TYPE_RANK) {
        params.pooling_type = LLAMA_POOLING_TYPE_NONE;   // the pooling is done here, over all chunks
    }
    pooler_.reset(llama_init_from_model(model_.get(), params));
    if (!pooler_) {
        throw Error("out_of_memory", "the context for embeddings could not be created: " + complaint(""));
    }
    llama_attach_threadpool(pooler_.get(), pool_.get(), pool_.get());
    if (!adapters_.empty()) {
        llama_set_adapters_lora(pooler_.get(), adapters_.data(), adapters_.size(), adapter_scales_.data());
    }
}

std::vector<float> Model::pooled(const std::vector<Token> & tokens) {
    create_pooler(static_cast<int32_t>(tokens.size()));
    try {
        if (llama_memory_t memory = llama_get_memory(pooler_.get()); memory != nullptr) {
            llama_memory_clear(memory, false);
        }
        return whole_text_ ? pool_whole(tokens) : pool_in_chunks(tokens);
    } catch (const std::bad_alloc &) {
        pooler_.reset();
        throw Error("out_of_memory", "memory ran out while computing");
    } catch (const Error &) {
        pooler_.reset();
        throw;
    } catch (const std::exception & e) {
        pooler_.reset();
        throw Error("internal_error", std::string("the computation failed: ") + e.what());
    }
}

void Model::compute_pooled(Token * tokens, int32_t n_tokens) {
    llama_batch batch = llama_batch_get_one(tokens, n_tokens);
    std::vector<int8_t> outputs(static_cast<size_t>(n_tokens), 1);   // every token's row is wanted
    batch.logits = outputs.data();
    const bool encode = llama_get_memory(pooler_.get()) == nullptr || llama_model_has_encoder(model_.get());
    const int32_t status = encode ? llama_encode(pooler_.get(), batch) : llama_decode(pooler_.get(), batch);
    log::expect_abort(false);
    if (status == 2) {
        throw Error("cancelled", "the request was cancelled");
    }
    if (status == -2) {
        throw Error("out_of_memory", "memory ran out while computing: " + complaint(""));
    }
    if (status != 0) {
        throw Error("internal_error", "the computation failed (" + std::to_string(status) + ")");
    }
}

// n values of the only sequence.
std::vector<float> Model::sequence_values(size_t n) const {
    const float * values = llama_get_embeddings_seq(pooler_.get(), 0);
    if (values == nullptr) {
        throw Error("internal_error", "the model gave no values");
    }
    return {values, values + n};
}

std::vector<float> Model::pool_whole(std::vector<Token> tokens) {
    compute_pooled(tokens.data(), static_cast<int32_t>(tokens.size()));
    return sequence_values(n_pooled());
}

// A causal model is read in chunks, so that its buffers need not grow with the text; the pooling is done here. The last
// token's scores are what a ranking model leaves after its last chunk.
std::vector<float> Model::pool_in_chunks(std::vector<Token> tokens) {
    const size_t n_chunk = llama_n_ubatch(pooler_.get());
    const size_t width = n_pooled();
    std::vector<double> sum(width, 0);
    const auto add = [&](const float * row) {
        for (size_t i = 0; i < width; ++i) {
            sum[i] += row[i];
        }
    };
    for (size_t at = 0; at < tokens.size(); at += n_chunk) {
        const size_t n = std::min(n_chunk, tokens.size() - at);
        compute_pooled(tokens.data() + at, static_cast<int32_t>(n));
        if (pooling_ == LLAMA_POOLING_TYPE_RANK) {
            continue;
        }
        const float * rows = llama_get_embeddings(pooler_.get());
        if (rows == nullptr) {
            throw Error("internal_error", "the model gave no embeddings");
        }
        const bool last = at + n == tokens.size();
        if (pooling_ == LLAMA_POOLING_TYPE_LAST) {
            if (last) {
                add(rows + (n - 1) * width);
            }
        } else if (pooling_ == LLAMA_POOLING_TYPE_CLS) {
            if (at == 0) {
                add(rows);
            }
        } else {
            for (size_t row = 0; row < n; ++row) {
                add(rows + row * width);
            }
        }
    }
    if (pooling_ == LLAMA_POOLING_TYPE_RANK) {
        return sequence_values(width);
    }
    const bool mean = pooling_ != LLAMA_POOLING_TYPE_LAST && pooling_ != LLAMA_POOLING_TYPE_CLS;
    const double n_summed = mean ? static_cast<double>(tokens.size()) : 1;
    std::vector<float> result(width);
    for (size_t i = 0; i < width; ++i) {
        result[i] = static_cast<float>(sum[i] / n_summed);
    }
    return result;
}

size_t Model::n_pooled() const {
    return pooling_ == LLAMA_POOLING_TYPE_RANK ? llama_model_n_cls_out(model_.get())
                                               : static_cast<size_t>(llama_model_n_embd_out(model_.get()));
}

}  // namespace pgl
