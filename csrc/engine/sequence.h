// Sequence: one request on its way through the engine, from the queue to its last event.
#pragma once

#include "engine/draft.h"
#include "engine/guide.h"
#include "engine/sampler.h"
#include "engine/text.h"
#include "engine/thought.h"
#include "llama/tokenizer.h"
#include "request.h"

#include <chrono>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace pgl {

class Sequence {
  public:
    using Clock = std::chrono::steady_clock;
    static double ms_since(Clock::time_point start) {
        return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
    }

    // `prompt`: the request's ids. `n_room`: tokens the context has left after it. `guide`: null = a free answer.
    // `drafter`: null = none. `tokens`: what the request's texts are in tokens. `adapters`: that it runs with.
    Sequence(RequestId id, Request request, std::vector<Token> prompt, int32_t n_room, int32_t n_vocab,
             std::shared_ptr<Guide> guide = nullptr, std::unique_ptr<Drafter> drafter = nullptr,
             SamplerTokens tokens = {}, AdapterScales adapters = {});
    ~Sequence();  // stops what is still computed for it
    Sequence(const Sequence &) = delete;
    Sequence & operator=(const Sequence &) = delete;

    RequestId id() const { return id_; }
    Task task() const { return request_.task; }
    const std::vector<Token> & prompt() const { return prompt_; }
    const AdapterScales & adapters() const { return adapters_; }

    // Where its tokens are. n_past counts those in the KV cache; the prompt is prefilled when it reaches n_prompt.
    int32_t slot = -1;
    int32_t n_past = 0;
    int32_t n_prompt() const { return static_cast<int32_t>(prompt_.size()); }
    int32_t n_remaining() const { return std::max(0, n_prompt() - n_past); }
    Token next_token() const { return next_token_; }   // sampled, not yet in the cache

    void admitted(int32_t slot_, int32_t n_cached);
    void prefilled();

    // Whether the prompt's own tokens are to be described, from logits at every position but the last.
    bool describes_prompt() const { return request_.n_prompt_logprobs >= 0; }
    // `logits`: what the model expected after the prompt's token at `position`, and so of the next one.
    void describe_prompt(const float * logits, int32_t position, const Tokenizer & tokenizer);

    // Whether the prompt is all that is read: then closed() in place of a sample().
    bool says_nothing() const { return request_.max_tokens == 0; }
    Event closed();

    // Samples from `logits` and turns the token into an event. Afterwards ended() says whether it was the last.
    // The guide, if any, must be ready. Throws Error("numeric_error") and what the guide throws.
    Event sample(float * logits, const Tokenizer & tokenizer);
    bool ended() const { return ended_; }

    // How many more tokens than the next one a pass may give at most. 0 = it is not drafted for.
    int32_t draft_limit() const;
    // What may come after next_token(), from what was said before: no more than draft_limit(), which is not 0.
    const Draft & propose();

    // These are computed with the next pass. Every sample() that chooses the one foretold goes on to the next; any
    // other ends the draft, as the end of the answer does.
    void begin_draft(std::vector<Token> tokens);
    const std::vector<Token> & draft() const { return draft_; }
    size_t n_foretold() const { return n_foretold_; }   // of the draft, that were chosen
    void end_draft();     // what did not come is rejected
    void forget_draft();  // the pass did not take place

    DraftBudget budget;

    const std::shared_ptr<Guide> & guide() const { return guide_; }
    bool awaits_mask() const { return guide_ && !guide_->ready(); }

    // Keeps logits [n_vocab] whose mask is late, for a sample() later on.
    void hold(const float * logits, int32_t n_vocab) { held_.assign(logits, logits + n_vocab); }

    // Whether it waits for its guide, and takes no part in steps: with logits on hold, or with a token of which it is
    // not settled whether it was the last.
    bool waits() const { return !held_.empty() || settling_; }

    // Once the guide of a waiting sequence is ready: samples from the logits on hold, or says whether the last token
    // ended the answer; nothing = it did not. Throws as sample() does.
    std::optional<Event> go_on(const Tokenizer & tokenizer);

    Event progress() const;
    Event pooled(std::vector<float> values);
    Event failed(const std::string & code, const std::string & message);
    const Usage & usage() const { return usage_; }

  private:
    Event event(EventKind kind) const;
    double elapsed_ms() const;
    Timings timings() const;   // until now
    void take(const TextStream::Out & out, Event & event);
    void process(float * logits, int32_t n_vocab);
    std::string bytes_of(Token token, const Tokenizer & tokenizer) const;
    void tell_prompt(Event & event);
    void note_token(Token token, Event & event) const;
    bool is_marked(Token token, const Tokenizer & tokenizer) const;
    bool is_stop(Token token) const;
    void end_where_due(Event & event);
    Event stamped(Event event);

    RequestId id_;
    Request request_;
    std::vector<Token> prompt_;
    int32_t max_tokens_;
    std::shared_ptr<Guide> guide_;  // the mask worker's too, while it computes
    Thought thought_;
    Sampler sampler_;
    TextStream text_;
    std::unique_ptr<Drafter> drafter_;
    std::vector<Token> draft_;  // computed with the pass under way
    size_t n_foretold_ = 0;
    Token next_token_ = -1;
    bool ended_ = false, settling_ = false;
    std::vector<float> held_;
    AdapterScales adapters_;
    std::vector<Token> answer_;  // kept for a logits processor
    bool told_prompt_ = false;
    std::vector<TokenLogprob> prompt_logprobs_;  // not told yet
    std::deque<TokenLogprob> undecided_;  // tokens whose text is still held back, with their logprobs where asked for
    Usage usage_;
    Timings timings_;
    Clock::time_point submitted_ = Clock::now();
};

}  // namespace pgl
