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

// What a request's texts are in tokens of the model.
struct SamplerTokens {
    std::vector<std::vector<Token>> bad;   // sequences of bad_words, none empty
    std::unordered_set<Token> breakers;    // every token with one of dry_sequence_breakers in it
    std::vector<Token> ends;               // those that end an answer
    std::vector<Token> thought_ending;     // what ends a thought that has a limit
};

// Penalties over the answer, temperature, then top_n_sigma, top_k, top_p, min_p, typical_p and XTC in that order, then
// one draw from what is left, renormalised; mirostat is in place of all those between temperature and draw. Tokens less
// than 1e-9 times as likely as the best are never drawn.
// repetition_penalty: Keskar et al. 2019 (CTRL), over prompt and answer; frequency and presence penalties: the OpenAI
// API's, over the answer; typical_p: Meister et al. 2022 (locally typical sampling); mirostat: Basu et al. 2020;
// top_n_sigma: Tang et al. 2024; XTC (exclude top choices): p-e-w 2024; temperature by entropy: kalomaze 2023.
class Sampler {
  public:
    Sampler(const SamplingParams & params, const std::vector<Token> & prompt, int32_t n_vocab,
            SamplerTokens tokens = {});

    // Chooses from `logits` [n_vocab] (penalties are applied in place) and remembers the choice. `logprob`, where asked
    // for, describes the model's own distribution, before penalties and temperature, or with `post_sampling_probs` the
    // one that is drawn from; its `bytes` are left empty.
    // `guide`: chooses only what it allows, and tells it the choice. `goes_on`: chooses none of the tokens that end an
    // answer. `due`: the token that is chosen if it is not ruled out; -1 = none. Throws Error("numeric_error") on NaN,
    // on +infinity, or when every token is ruled out; and what the guide throws.
    Token sample(float * logits, TokenLogprob * logprob, Guide * guide = nullptr, bool goes_on = false, Token due = -1);

    // How likely `chosen` was, and the `n` likeliest tokens, or `ids` and `chosen` in their place. `logits` [n_vocab],
    // the model's own.
    static TokenLogprob describe(const float * logits, int32_t n_vocab, Token chosen, int32_t n,
                                 const std::vector<Token> & ids = {});

  private:
    struct Candidate {
        float logit;   // divided by the temperature
        Token token;
        float weight;  // exp(logit - best logit)
    };

    static double total_weight(const std::vector<Candidate> & candidates);

    Token choose(float * logits, bool goes_on);
    void rule_out(float * logits, bool goes_on) const;
    void penalise(float * logits) const;
    float temperature(const float * logits, float best) const;
    float floor(const float * logits, float best, float temperature) const;
    void gather(const float * logits, float best);
    void filter();
    void exclude_top_choices();
    Token draw();
    Token draw_by_surprise();
    TokenLogprob describe_drawn(Token chosen) const;
    void remember(Token token);

    SamplingParams params_;
    int32_t n_vocab_;
    uint64_t n_drawn_ = 0;
    std::unordered_set<Token> seen_;                   // prompt and answer; only with a repetition penalty
    std::unordered_map<Token, int32_t> counts_;        // answer; only with frequency or presence penalties
    const SamplerTokens tokens_;
    const bool looks_back_;        // at the order of what was said
    std::vector<Token> history_;   // prompt and answer; only if so
    const size_t n_prompt_;
    float aim_;                    // mirostat's: the surprise that is allowed next, in bits
    std::vector<Candidate> candidates_;
};

}  // namespace pgl
