// Model: weights, tokenizer and the context that generates. Used by one thread, the engine's; only `tokenizer()` and
// `info()` are for any.
#pragma once

#include "llama/memory_plan.h"
#include "llama/tokenizer.h"
#include "llama/weights.h"
#include "request.h"

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace pgl {

class Pooler;

// Tokens of one llama_decode, all of one shape: every sequence brings the same number of tokens, and sequence ids are
// consecutive, so that the non-unified KV cache runs them in a single pass over the weights.
struct Batch {
    struct Row {
        Token token;
        int32_t position;
        int32_t sequence;
        bool logits;
    };
    std::vector<Row> rows;
    AdapterScales adapters;
};

// What a load begins with: the file, the options with n_threads settled, and what this machine has.
struct LoadSetup {
    GgufSummary summary;
    EngineOptions options;
    bool generates = false;
    std::vector<ggml_backend_device *> gpus;  // that layers may be placed on
    MemoryAvailable available;
};

// Throws Error: not_found, invalid_model (also for a file that is no model by itself), invalid_request.
LoadSetup set_up(const std::string & path, const EngineOptions & options);

// Of the context that generates. `options`: n_ctx is settled.
llama_context_params context_params(const EngineOptions & options);

// Bytes of prefixes that are kept beyond the running streams, at most. `context_bytes`: of one stream's cache.
uint64_t prefix_cache_limit(const EngineOptions & options, uint64_t weights_bytes, uint64_t context_bytes);

class Model {
  public:
    // Validates, then loads. `on_progress(0..1)` returns false to stop: Error("cancelled"). `abort` is polled between
    // the nodes of every decode (CPU). Throws Error: not_found, invalid_model, out_of_memory, invalid_request,
    // cancelled.
    Model(const std::string & path, const EngineOptions & options, const std::function<bool(float)> & on_progress,
          const Abort & abort);
    ~Model();
    Model(const Model &) = delete;
    Model & operator=(const Model &) = delete;

    const ModelInfo & info() const { return info_; }
    const Tokenizer & tokenizer() const { return *tokenizer_; }

    // False: aborted; the caller trims every sequence of the batch back to what it had committed.
    // Throws Error: internal_error or out_of_memory, after which the context is rebuilt, empty, and every sequence's
    // state is gone; device_lost, after which nothing can be computed with this model.
    bool decode(const Batch & batch);
    // The same for whatever else threw: the error to tell.
    Error failed(const std::string & why);
    float * logits(int32_t row);   // n_vocab values, of a row decoded with logits; writable until the next decode

    bool can_trim() const;   // recurrent state cannot be cut to a shorter past
    // Keeps the first n_tokens of a sequence. False: this architecture cannot trim, and the sequence is now empty.
    bool trim(int32_t sequence, int32_t n_tokens);
    std::vector<uint8_t> snapshot(int32_t sequence) const;
    bool restore(int32_t sequence, const std::vector<uint8_t> & snapshot);  // false: the sequence is now empty

    bool can(Task task) const;
    // Whether a pass with several rows of a sequence gives each the bits that a pass of its own would, and is wanted.
    bool speculates(const AdapterScales & adapters) const;
    void add_draft_model(const ModelInfo & draft) { info_.draft_model_bytes = draft.weights_bytes + draft.cache_bytes; }
    // A GPU's pass cannot be stopped half-way: `abort` is heeded between two.
    bool can_abort() const { return weights_->gpus().empty(); }
    std::map<std::string, uint64_t> device_bytes() const;   // held of each GPU, by its name

    Pooler & pooler() { return *pooler_; }
    int32_t max_pooled_tokens() const { return info_.n_ctx_train; }   // of a text to embed or to rank

  private:
    void create_context();
    void try_out();
    std::string foreign_operation(const AdapterScales & adapters);
    bool kernels_on() const;
    std::map<std::string, Token> infill_tokens() const;
    std::string why_not_to_speculate(const std::string & foreign_operation) const;
    void describe(const std::string & path, const GgufSummary & summary);
    void describe_special_tokens(const GgufSummary & summary);

    EngineOptions options_;   // as given, with what was left open settled
    ModelInfo info_;
    uint64_t cache_bytes_per_token_ = 0;   // of one stream
    bool speculates_ = false, speculates_with_adapters_ = false;
    std::unique_ptr<Weights> weights_;
    std::unique_ptr<Tokenizer> tokenizer_;
    ContextPtr context_;                   // null for a model that cannot generate
    std::unique_ptr<Pooler> pooler_;
};

}  // namespace pgl
