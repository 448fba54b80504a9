// One request's sampler: logits -> token. Deterministic: the n-th draw depends on the seed, n and the logits alone.
#pragma once

#include "request.h"

#include <cstdint>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

namespace pgl {

class Guide;

// Penalties over the answer, temperature, then top_k, top_p, min_p and typical_p in that order, then one draw from what
// is left, renormalised. Tokens less than 1e-9 times as likely as the best are never drawn.
// repetition_penalty: Keskar et al. 2019 (CTRL), over prompt and answer; frequency and presence penalties: the OpenAI
// API's, over the answer; typical_p: Meister et al. 2022 (locally typical sampling).
class Sampler {
  public:
    Sampler(const SamplingParams & params, const std::vector<Token> & prompt, int32_t n_vocab);

    // Chooses from `logits` [n_vocab] (penalties are applied in place) and remembers the choice. `logprob`, where asked
    // for, describes the model's own distribution, before penalties and temperature; its `bytes` are left empty.
    // `guide`: chooses only what it allows, and tells it the choice. Throws Error("numeric_error") on NaN, on
    // +infinity, or when every token is ruled out; and what the guide throws.
    Token sample(float * logits, TokenLogprob * logprob, Guide * guide = nullptr);

  private:
    struct Candidate {
        float logit;   // divided by the temperature
        Token token;
        float weight;  // exp(logit - best logit)
    };

    void penalise(float * logits) const;
    void gather(const float * logits, float best);
    void filter();
    Token draw();
    TokenLogprob describe(const std::vector<float> & raw, Token chosen) const;

    SamplingParams params_;
    int32_t n_vocab_;
    uint64_t n_drawn_ = 0;
    std::unordered_set<Token> seen_;                   // prompt and answer; only with a repetition penalty
    std::unordered_map<Token, int32_t> counts_;        // answer; only with frequency or presence penalties
    std::vector<Candidate> candidates_;
};

}  // namespace pgl
