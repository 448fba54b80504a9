// A loaded model and its context: RAII over llama.h. Used by one thread, the engine's; only `tokenizer()` is for any.
#pragma once

#include "llama/tokenizer.h"
#include "request.h"

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

struct llama_adapter_lora;
struct llama_model;
struct llama_context;
struct ggml_threadpool;

namespace pgl {

struct GgufSummary;

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
};

class Model {
  public:
    // Validates, then loads. `on_progress(0..1)` returns false to stop: Error("cancelled"). `abort` is polled between
    // the nodes of every decode (CPU). Throws Error: not_found, invalid_model, out_of_memory, invalid_request,
    // cancelled.
    Model(const std::string & path, const EngineOptions & options, const std::function<bool(float)> & on_progress,
          const std::atomic<bool> & abort);
    ~Model();
    Model(const Model &) = delete;
    Model & operator=(const Model &) = delete;

    const ModelInfo & info() const { return info_; }
    const Tokenizer & tokenizer() const { return *tokenizer_; }

    // False: aborted; the caller trims every sequence of the batch back to what it had committed.
    // Throws Error("internal_error"); the context is then rebuilt, empty, and every sequence's state is gone.
    bool decode(const Batch & batch);
    float * logits(int32_t row);   // n_vocab values, of a row decoded with logits; writable until the next decode

    bool can_trim() const;   // recurrent state cannot be cut to a shorter past
    // Keeps the first n_tokens of a sequence. False: this architecture cannot trim, and the sequence is now empty.
    bool trim(int32_t sequence, int32_t n_tokens);
    std::vector<uint8_t> snapshot(int32_t sequence) const;
    bool restore(int32_t sequence, const std::vector<uint8_t> & snapshot);  // false: the sequence is now empty

    bool can(Task task) const;

    // L2-normalised embedding [n_embd], pooled as the model says (mean where it does not).
    // Throws Error: cancelled, out_of_memory, numeric_error, internal_error.
    std::vector<float> embed(const std::vector<Token> & tokens);
    // A cross-encoder's scores [one per label] as they come out of the model. Throws as embed does.
    std::vector<float> rank(const std::vector<Token> & tokens);
    int32_t max_pooled_tokens() const { return info_.n_ctx_train; }   // of a text to embed or to rank

  private:
    void load(const std::string & path, const GgufSummary & summary, const std::function<bool(float)> & on_progress);
    void load_adapters(const std::string & path);
    void plan_memory(const GgufSummary & summary);
    void create_pool();
    void create_context();
    void describe(const std::string & path, const GgufSummary & summary);
    void describe_special_tokens(const GgufSummary & summary);

    std::vector<float> pooled(const std::vector<Token> & tokens);
    void create_pooler(int32_t n_tokens);
    std::vector<float> pool_whole(std::vector<Token> tokens);
    std::vector<float> pool_in_chunks(std::vector<Token> tokens);
    void compute_pooled(Token * tokens, int32_t n_tokens);
    std::vector<float> sequence_values(size_t n) const;
    size_t n_pooled() const;   // values of one text

    struct Free {
        void operator()(llama_model * model) const;
        void operator()(llama_context * context) const;
        void operator()(ggml_threadpool * pool) const;
    };

    EngineOptions options_;
    const std::atomic<bool> & abort_;
    ModelInfo info_;
    uint64_t cache_bytes_per_token_ = 0;
    uint64_t n_head_ = 0, cache_bytes_f16_ = 0;       // of the file's own, for the pooler's memory
    int32_t pooling_ = -1;                           // llama.cpp's number; -1 = the file says nothing
    bool whole_text_ = false;                     // every token sees every other: no text can be computed in parts
    std::unique_ptr<llama_model, Free> model_;
    std::vector<llama_adapter_lora *> adapters_;      // freed with the model
    std::vector<float> adapter_scales_;
    std::unique_ptr<ggml_threadpool, Free> pool_;
    std::unique_ptr<llama_context, Free> context_;    // null for a model that cannot generate
    std::unique_ptr<llama_context, Free>
        pooler_;     // embeds and ranks; made when first needed, for texts as long as needed
    int32_t n_pooler_ = 0;                            // tokens it was made for
    std::unique_ptr<Tokenizer> tokenizer_;
};

}  // namespace pgl
