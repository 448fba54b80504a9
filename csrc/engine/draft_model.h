// Draft model: a smaller model with the same vocabulary guesses what another one will say. Of the engine's thread.
#pragma once

#include "engine/draft.h"
#include "llama/model.h"
#include "request.h"

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace pgl {

// Speculative decoding (Leviathan et al. 2023) with the likeliest tokens as drafts: whatever it guesses, the other
// model decides. How often a guess of some probability came true says how far the next is trusted.
class DraftModel {
  public:
    // Loads it for the answers of `target`, with its `options`. Throws what Model does, with the option in the message,
    // and Error("invalid_request"), field draft_model, where the target is not drafted for, the vocabularies differ or
    // it cannot be a draft model.
    DraftModel(const Model & target, const EngineOptions & options, const std::function<bool(float)> & on_progress,
               const Abort & abort);

    const ModelInfo & info() const { return model_->info(); }

    // Reads what it has not yet seen of an answer's tokens, prompt and all: a batch of them at most. Whether it has
    // seen all. Throws as Model::decode() does.
    bool follow(const std::vector<Token> & tokens);

    // What comes after the tokens that it followed: at most `limit` tokens, for as long as another one whose draft has
    // these odds is `worthwhile`. Throws as follow() does.
    Draft propose(int32_t limit, const std::function<bool(int32_t n_tokens, float odds)> & worthwhile);

    // How many of the tokens proposed last came true, of those that were computed.
    void observe(size_t n_computed, size_t n_foretold);

    double token_ms() const { return token_ms_; }        // what a guess takes; 0 = nobody knows
    float usual_odds() const { return usual_.odds(); }   // of one more token

  private:
    static constexpr size_t kGrounds = 10;   // probabilities in tenths
    bool compute(const std::vector<Token> & tokens);
    Token likeliest(float & probability) const;

    std::unique_ptr<Model> model_;
    std::vector<Token> held_;   // in its cache
    std::array<Record, kGrounds> records_;
    std::vector<size_t> grounds_;   // of the tokens proposed last
    Record usual_{6, 10};           // of all tokens; as if some had been guessed
    double token_ms_ = 0;
    int32_t last_row_ = 0;          // whose logits come next
};

}  // namespace pgl
