#include "llama/model.h"

#include "gguf/check.h"
#include "kernels/kernels.h"
#include "llama/devices.h"
#include "llama/log.h"
#include "llama/memory_plan.h"
#include "llama/memory_use.h"
#include "llama/pooler.h"
#include "platform/machine.h"
#include "ranges.h"

#include <llama.h>

#include <algorithm>
#include <chrono>

namespace pgl {
namespace {

constexpr int32_t kContextStep = 256;   // tokens: llama.cpp pads a context to a multiple of it

void check_usable(const GgufSummary & summary) {
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
}

MemoryAvailable memory_available(const std::vector<ggml_backend_dev_t> & gpus) {
    MemoryAvailable memory;
    memory.host = machine::available_bytes();
    for (ggml_backend_dev_t gpu : gpus) {
        memory.gpus.push_back(device_info(gpu).free_bytes);
        memory.shared = ggml_backend_dev_type(gpu) == GGML_BACKEND_DEVICE_TYPE_IGPU;
    }
    memory.no_gpu_reason = no_gpu_reason();
    return memory;
}

}  // namespace

LoadSetup set_up(const std::string & path, const EngineOptions & options) {
    check_ranges(options);
    LoadSetup setup;
    setup.options = options;
    setup.summary = check_gguf(path);
    check_usable(setup.summary);
    const std::vector<Task> & tasks = setup.summary.tasks;
    setup.generates = std::find(tasks.begin(), tasks.end(), Task::generate) != tasks.end();
    initialise_backends();
    if (options.n_threads == 0) {
        setup.options.n_threads = machine::usable_threads();
    }
    // Not asked for where they are not wanted: a driver takes memory and time to say what it has.
    if (options.device != Device::cpu && options.n_gpu_layers != 0) {
        setup.gpus = gpu_devices();
    }
    setup.available = memory_available(setup.gpus);
    return setup;
}

llama_context_params context_params(const EngineOptions & options) {
    llama_context_params params = llama_context_default_params();
    const auto streams = static_cast<uint32_t>(options.max_streams);
    params.n_ctx = static_cast<uint32_t>((options.n_ctx + kContextStep - 1) / kContextStep * kContextStep) * streams;
    params.n_batch = params.n_ubatch = static_cast<uint32_t>(options.n_batch);
    params.n_seq_max = streams;
    params.n_outputs_max = std::max(streams, static_cast<uint32_t>(kMaxRows));
    // One stream of cells per sequence: a sequence's cells are its positions in order, alone or among others, so its
    // results do not depend on its neighbours.
    params.kv_unified = false;
    params.type_k = params.type_v = options.cache_type == CacheType::q8_0 ? GGML_TYPE_Q8_0 : GGML_TYPE_F16;
    return params;
}

uint64_t prefix_cache_limit(const EngineOptions & options, uint64_t weights_bytes, uint64_t context_bytes) {
    // A conversation of full length must fit, and beyond that no more than the model itself is worth.
    const uint64_t worth = std::max(weights_bytes, context_bytes);
    return options.prefix_cache_bytes < 0 ? std::min(worth, machine::available_bytes() / 8)
                                          : static_cast<uint64_t>(options.prefix_cache_bytes);
}

Model::~Model() = default;

Model::Model(const std::string & path, const EngineOptions & options, const std::function<bool(float)> & on_progress,
             const Abort & abort) {
    const auto start = std::chrono::steady_clock::now();
    const LoadSetup setup = set_up(path, options);
    const GgufSummary & summary = setup.summary;
    options_ = setup.options;
    info_.tasks = summary.tasks;
    if (!options_.embeddings) {
        info_.tasks.erase(std::remove(info_.tasks.begin(), info_.tasks.end(), Task::embed), info_.tasks.end());
    }
    const int32_t n_trained = trained_context(summary);
    if (options_.n_ctx > n_trained) {
        log::write(log::warning, "n_ctx=" + std::to_string(options_.n_ctx) + " is beyond the " +
                                     std::to_string(n_trained) + " tokens this model was trained for");
    }
    const MemoryPlan plan = plan_memory(summary, setup.generates, options_, setup.available);
    options_.n_ctx = plan.n_ctx;
    options_.n_gpu_layers = plan.n_gpu_layers;
    cache_bytes_per_token_ = plan.cache_bytes_per_token;
    info_.placement = plan.placement;
    weights_ = std::make_unique<Weights>(path, summary, options_, plan, setup.gpus, on_progress, abort);
    if (options_.kernels) {
        kernels::measure_forms();
    }
    tokenizer_ = std::make_unique<Tokenizer>(llama_model_get_vocab(weights_->model()), summary.pre_tokenizer);
    if (can(Task::generate)) {
        create_context();
        try_out();
    }
    pooler_ = std::make_unique<Pooler>(*weights_, summary, options_);
    describe(path, summary);
    info_.load_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

bool Model::can(Task task) const {
    return std::find(info_.tasks.begin(), info_.tasks.end(), task) != info_.tasks.end();
}

void Model::create_context() {
    context_.reset();
    context_ = weights_->make_context(context_params(options_), "the context");
}

// One token, to learn what a pass on the CPU consists of: without adapters, and with all that a request may choose
// from. It also brings in what the first answer would wait for.
void Model::try_out() {
    const size_t n_adapters = weights_->adapter_scales().size();
    const std::string foreign = foreign_operation(AdapterScales(n_adapters, 0.0f));
    const std::string foreign_to_adapters =
        n_adapters > 0 ? foreign_operation(AdapterScales(n_adapters, 1.0f)) : foreign;
    info_.row_invariant = weights_->gpus().empty() && kernels_on() && foreign.empty() && foreign_to_adapters.empty();
    const std::string why_not = why_not_to_speculate(foreign);
    const std::string why_not_with_adapters = why_not_to_speculate(foreign_to_adapters);
    speculates_ = why_not.empty();
    speculates_with_adapters_ = why_not_with_adapters.empty();
    info_.speculation = !speculates_                   ? "off: " + why_not
                        : options_.draft_model.empty() ? "lookup"
                                                       : "lookup and a draft model";
    if (speculates_ && !speculates_with_adapters_) {
        info_.speculation += "; off with an adapter: " + why_not_with_adapters;
    }
}

// An operation of a pass with these adapters that is not row-invariant; "" = none, or none that matters.
std::string Model::foreign_operation(const AdapterScales & adapters) {
    if (!weights_->gpus().empty()) {
        return "";
    }
    kernels::watch_foreign();
    const Token token = std::max(0, llama_vocab_bos(llama_model_get_vocab(weights_->model())));
    if (!decode({{{token, 0, 0, true}}, adapters})) {
        throw Error("cancelled", "the load was cancelled");
    }
    trim(0, 0);
    return kernels::foreign_operation();
}

bool Model::speculates(const AdapterScales & adapters) const {
    const bool none = std::all_of(adapters.begin(), adapters.end(), [](float scale) { return scale == 0; });
    return none ? speculates_ : speculates_with_adapters_;
}

std::string Model::why_not_to_speculate(const std::string & foreign_operation) const {
    if (options_.speculate == Speculate::off) {
        return "speculate='off'";
    }
    if (!can_trim()) {
        return "the state of this architecture cannot be taken back by a few tokens";
    }
    if (!weights_->gpus().empty()) {
        return "on a GPU the bits of a row depend on how many there are";
    }
    if (!foreign_operation.empty()) {
        return foreign_operation + " is computed by llama.cpp's kernels, whose bits depend on the number of rows";
    }
    return kernels_on() ? "" : "this package's own kernels are off";
}

bool Model::kernels_on() const {
    return options_.kernels && std::string(kernels::isa()) != "off";
}

void Model::describe(const std::string & path, const GgufSummary & summary) {
    const llama_vocab * vocab = llama_model_get_vocab(weights_->model());
    info_.path = path;
    info_.architecture = summary.architecture;
    char description[256] = {};
    llama_model_desc(weights_->model(), description, sizeof description);
    info_.description = description;
    info_.quantization = summary.quantization;
    info_.chat_template = summary.chat_template;
    info_.bos_text = tokenizer_->literal(llama_vocab_bos(vocab));
    info_.eos_text = tokenizer_->literal(llama_vocab_eos(vocab));
    describe_special_tokens(summary);
    info_.infill_tokens = infill_tokens();
    info_.lora_scales = weights_->adapter_scales();
    info_.add_bos = llama_vocab_get_add_bos(vocab);
    info_.n_params = llama_model_n_params(weights_->model());
    info_.file_bytes = summary.file_bytes;
    info_.weights_bytes = summary.tensor_bytes;
    info_.n_ctx_train = llama_model_n_ctx_train(weights_->model());
    info_.n_ctx = info_.n_ctx_train;
    if (context_) {
        const uint32_t n_cells = llama_n_ctx_seq(context_.get());
        info_.compute_bytes = memory_parts(context_.get()).compute;
        info_.n_ctx = std::min(static_cast<int32_t>(n_cells), options_.n_ctx);
        info_.cache_bytes = cache_bytes_per_token_ * n_cells * static_cast<uint64_t>(options_.max_streams);
        info_.prefix_cache_bytes = prefix_cache_limit(options_, summary.tensor_bytes, cache_bytes_per_token_ * n_cells);
    }
    info_.longest_piece = static_cast<int32_t>(tokenizer_->longest_piece());
    info_.labels = summary.labels;
    info_.rerank_template = summary.rerank_template;
    info_.n_vocab = llama_vocab_n_tokens(vocab);
    info_.n_embd = llama_model_n_embd(weights_->model());
    info_.n_layer = llama_model_n_layer(weights_->model());
    info_.max_streams = options_.max_streams;
    info_.n_threads = options_.n_threads;
    info_.n_gpu_layers = options_.n_gpu_layers;
    info_.n_batch = options_.n_batch;
    info_.flash_attention = options_.flash_attention;
    info_.cache_type = name_of(options_.cache_type);
    info_.kernels = options_.kernels ? kernels::isa() : "off";
    info_.build = build_id();
    info_.process_id = machine::process_id();
    info_.devices.push_back(device_info(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU)));
    for (ggml_backend_dev_t gpu : weights_->gpus()) {
        info_.devices.push_back(device_info(gpu));
    }
    info_.metadata = summary.metadata;
}

// By the names that chat templates use for them.
void Model::describe_special_tokens(const GgufSummary & summary) {
    const llama_vocab * vocab = llama_model_get_vocab(weights_->model());
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
        if (tokenizer_->is_control(token)) {
            info_.control_tokens.emplace(tokenizer_->literal(token), token);
        }
    }
}

std::map<std::string, Token> Model::infill_tokens() const {
    const llama_vocab * vocab = llama_model_get_vocab(weights_->model());
    const std::pair<const char *, Token> named[] = {
        {"prefix", llama_vocab_fim_pre(vocab)}, {"suffix", llama_vocab_fim_suf(vocab)},
        {"middle", llama_vocab_fim_mid(vocab)}, {"pad", llama_vocab_fim_pad(vocab)},
        {"repo", llama_vocab_fim_rep(vocab)},   {"separator", llama_vocab_fim_sep(vocab)},
    };
    std::map<std::string, Token> tokens;
    for (const auto & [name, token] : named) {
        if (token >= 0) {
            tokens[name] = token;
        }
    }
    const bool able = tokens.count("prefix") > 0 && tokens.count("suffix") > 0 && tokens.count("middle") > 0;
    return able ? tokens : std::map<std::string, Token>{};
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
    if (!context_) {
        create_context();   // there was no memory for it after the last failure
    }
    llama_batch native{
        n, tokens.data(), nullptr, positions.data(), n_sequences.data(), sequence_lists.data(), outputs.data()};
    std::string fault;
    try {
        weights_->set_adapters(context_.get(), batch.adapters);
        kernels::begin_pass();
        const int32_t status = llama_decode(context_.get(), native);
        log::expect_abort(false);
        if (status == 0) {
            if (!weights_->gpus().empty()) {
                llama_synchronize(context_.get());   // a GPU's fault shows when its result is waited for
            }
            return true;
        }
        if (status == 2) {
            return false;
        }
        fault =
            status == -2 ? "memory ran out: " + log::complaint() : "llama_decode returned " + std::to_string(status);
    } catch (const std::bad_alloc &) {
        fault = "memory ran out";
    } catch (const std::exception & e) {
        fault = e.what();
    }
    throw failed(fault);
}

// Whatever failed inside is not reused.
Error Model::failed(const std::string & why) {
    const Error error = weights_->failed(context_, why);
    if (!weights_->lost() && can(Task::generate)) {
        try {
            create_context();
        } catch (const Error & e) {
            log::write(log::error, e.what());   // the next decode tries again
        }
    }
    return error;
}

std::map<std::string, uint64_t> Model::device_bytes() const {
    if (weights_->lost()) {
        return {};
    }
    // Before its first text a model that only embeds has no context, which would know.
    const bool any = context_ || pooler_->context() != nullptr;
    return any ? memory_use({context_.get(), pooler_->context()}) : weights_->weights_on_gpus();
}

float * Model::logits(int32_t row) {
    float * values = llama_get_logits_ith(context_.get(), row);
    if (values == nullptr) {
        throw Error("internal_error", "no logits for batch row " + std::to_string(row));
    }
    return values;
}

bool Model::can_trim() const {
    return !llama_model_is_recurrent(weights_->model()) && !llama_model_is_hybrid(weights_->model());
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

}  // namespace pgl
