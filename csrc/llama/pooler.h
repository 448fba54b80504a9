// Pooler: a whole text -> one vector or its scores, in a context of its own beside the one that generates.
#pragma once

#include "llama/weights.h"
#include "request.h"

#include <vector>

namespace pgl {

struct GgufSummary;

// Used by the engine's thread alone.
class Pooler {
  public:
    Pooler(Weights & weights, const GgufSummary & summary, const EngineOptions & options);

    // L2-normalised embedding [n_embd], pooled as the model says (mean where it does not).
    // Throws Error: cancelled, out_of_memory, numeric_error, internal_error.
    std::vector<float> embed(const std::vector<Token> & tokens);
    // A cross-encoder's scores [one per label] as they come out of the model. Throws as embed does.
    std::vector<float> rank(const std::vector<Token> & tokens);

    // A context for texts of at least `n_tokens`, should there be none. Throws Error("out_of_memory").
    void prepare(int32_t n_tokens);

    const llama_context * context() const { return context_.get(); }   // null: nothing was asked of it yet

  private:
    std::vector<float> pooled(const std::vector<Token> & tokens);
    std::vector<float> pool_whole(std::vector<Token> tokens);
    std::vector<float> pool_in_chunks(std::vector<Token> tokens);
    void compute(Token * tokens, int32_t n_tokens);
    std::vector<float> sequence_values(size_t n) const;
    size_t n_pooled() const;   // values of one text

    Weights & weights_;
    const bool flash_attention_;
    const uint64_t n_head_;
    const uint64_t cache_bytes_per_token_;   // llama.cpp keeps this context's keys and values in F16
    const int32_t pooling_;                  // llama.cpp's number; -1 = the file says nothing
    const bool whole_text_;                  // every token sees every other: no text can be computed in parts
    ContextPtr context_;                     // made when first needed, for texts as long as needed
    int32_t n_context_tokens_ = 0;           // the longest text it takes
};

}  // namespace pgl
