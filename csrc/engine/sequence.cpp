#include "engine/sequence.h"

#include <algorithm>
#include <utility>

namespace pgl {
namespace {

TokenLogprob with_bytes(TokenLogprob entry, const Tokenizer & tokenizer) {
    entry.bytes = tokenizer.bytes(entry.token);
    for (TokenLogprob & alternative : entry.top) {
        alternative.bytes = tokenizer.bytes(alternative.token);
    }
    return entry;
}

// A token's bytes; of a control token, which has none, its name.
std::string written(Token token, const Tokenizer & tokenizer) {
    std::string bytes = tokenizer.bytes(token);
    return bytes.empty() ? tokenizer.literal(token) : bytes;
}

}  // namespace

Sequence::Sequence(RequestId id, Request request, std::vector<Token> prompt, int32_t n_room, int32_t n_vocab,
                   std::shared_ptr<Guide> guide, std::unique_ptr<Drafter> drafter, SamplerTokens tokens,
                   AdapterScales adapters)
    : id_(id), request_(std::move(request)), prompt_(std::move(prompt)),
      max_tokens_(std::min(request_.max_tokens, n_room)), guide_(std::move(guide)),
      thought_(request_.thought, std::exchange(tokens.thought_ending, {})),
      sampler_(request_.sampling, prompt_, n_vocab, std::move(tokens)),
      text_(request_.stop, request_.filter, request_.include_stop), drafter_(std::move(drafter)),
      adapters_(std::move(adapters)) {
    usage_.n_prompt = n_prompt();
}

Sequence::~Sequence() {
    if (awaits_mask()) {
        guide_->stop();
    }
}

double Sequence::elapsed_ms() const {
    return ms_since(submitted_);
}

Event Sequence::event(EventKind kind) const {
    Event event;
    event.id = id_;
    event.kind = kind;
    event.usage = usage_;
    event.timings = timings();
    event.outbox = request_.outbox;
    return event;
}

Timings Sequence::timings() const {
    Timings so_far = timings_;
    so_far.total_ms = elapsed_ms();
    return so_far;
}

void Sequence::admitted(int32_t slot_, int32_t n_cached) {
    slot = slot_;
    n_past = usage_.n_cached = n_cached;
    timings_.queue_ms = elapsed_ms();
}

void Sequence::prefilled() {
    timings_.prefill_ms = elapsed_ms();
}

int32_t Sequence::draft_limit() const {
    return drafter_ ? std::clamp(max_tokens_ - usage_.n_generated - 1, 0, kMaxRows - 1) : 0;
}

const Draft & Sequence::propose() {
    const bool known = guide_ != nullptr && guide_->ready();
    return drafter_->propose(draft_limit(), known ? guide_->forced() : std::vector<Token>{});
}

void Sequence::begin_draft(std::vector<Token> tokens) {
    draft_ = std::move(tokens);
    n_foretold_ = 0;
}

void Sequence::forget_draft() {
    draft_.clear();
    n_foretold_ = 0;
}

void Sequence::end_draft() {
    usage_.n_rejected += static_cast<int32_t>(draft_.size() - n_foretold_);
    forget_draft();
}

void Sequence::describe_prompt(const float * logits, int32_t position, const Tokenizer & tokenizer) {
    if (position == 0) {
        TokenLogprob first;
        first.token = prompt_.front();
        prompt_logprobs_.push_back(with_bytes(first, tokenizer));  // nothing came before it that would have foretold it
    }
    const auto next = static_cast<size_t>(position) + 1;
    if (next < prompt_.size()) {
        prompt_logprobs_.push_back(with_bytes(
            Sampler::describe(logits, tokenizer.n_vocab(), prompt_[next], request_.n_prompt_logprobs), tokenizer));
    }
}

Event Sequence::closed() {
    Event result = event(EventKind::text);
    tell_prompt(result);
    result.reason = FinishReason::length;
    return stamped(std::move(result));
}

// Once, with the first event after it.
void Sequence::tell_prompt(Event & event) {
    event.prompt_logprobs = std::exchange(prompt_logprobs_, {});
    if (request_.return_tokens && !told_prompt_) {
        event.prompt_tokens = prompt_;
        told_prompt_ = true;
    }
}

void Sequence::process(float * logits, int32_t n_vocab) {
    if (!request_.logits_processor) {
        return;
    }
    std::vector<Token> tokens = prompt_;
    tokens.insert(tokens.end(), answer_.begin(), answer_.end());
    request_.logits_processor(tokens, logits, n_vocab);
}

// Of a token of the answer; "" for a control token that is not shown.
std::string Sequence::bytes_of(Token token, const Tokenizer & tokenizer) const {
    return request_.show_special ? written(token, tokenizer) : tokenizer.bytes(token);
}

bool Sequence::is_stop(Token token) const {
    const std::vector<Token> & ids = request_.stop_token_ids;
    return std::find(ids.begin(), ids.end(), token) != ids.end();
}

Event Sequence::sample(float * logits, const Tokenizer & tokenizer) {
    TokenLogprob logprob;
    const bool wants_logprobs = request_.sampling.n_logprobs >= 0;
    const bool goes_on = usage_.n_generated < request_.min_tokens;
    process(logits, tokenizer.n_vocab());
    const Token due = thought_.due();
    next_token_ = sampler_.sample(logits, wants_logprobs ? &logprob : nullptr, guide_.get(), goes_on, due);
    if (timings_.first_token_ms < 0) {
        timings_.first_token_ms = elapsed_ms();
    }
    if (const auto n = static_cast<size_t>(usage_.n_generated); n < request_.replay.size()) {
        next_token_ = request_.replay[n];
    }
    if (drafter_) {
        drafter_->append(next_token_);
    }
    if (request_.logits_processor) {
        answer_.push_back(next_token_);
    }
    if (request_.thought.max_tokens >= 0) {
        thought_.said(next_token_, written(next_token_, tokenizer));
    }
    const bool foretold = n_foretold_ < draft_.size() && draft_[n_foretold_] == next_token_;
    if (foretold) {
        ++n_foretold_;
    } else {
        end_draft();
    }
    Event result = event(EventKind::text);
    tell_prompt(result);
    const bool stops = is_stop(next_token_);
    if (stops || ((!request_.ignore_eos || guide_ != nullptr) && tokenizer.is_end(next_token_))) {
        if (stops && request_.include_stop) {
            take(text_.push(written(next_token_, tokenizer)), result);
        }
        take(text_.finish(), result);
        if (wants_logprobs && describes_prompt()) {
            // Who reads the prompt's tokens counts on one entry for each that was sampled, also for the end.
            result.logprobs.push_back(with_bytes(std::move(logprob), tokenizer));
        }
        if (result.reason == FinishReason::none) {
            result.reason = FinishReason::stop;
            result.stop_token = stops ? next_token_ : -1;
        }
    } else {
        ++usage_.n_generated;
        text_.hold_stops(usage_.n_generated < request_.min_tokens);
        usage_.n_accepted += foretold ? 1 : 0;
        if (wants_logprobs || request_.return_tokens) {
            logprob.token = next_token_;
            undecided_.push_back(wants_logprobs ? with_bytes(std::move(logprob), tokenizer) : std::move(logprob));
        }
        if (is_marked(next_token_, tokenizer)) {
            take(text_.finish(), result);
            result.mark = result.reason == FinishReason::none ? tokenizer.literal(next_token_) : "";
            take(text_.push(""), result);
        } else {
            take(text_.push(bytes_of(next_token_, tokenizer)), result);
        }
        settling_ = result.reason == FinishReason::none && guide_ != nullptr && !guide_->settled();
        if (result.reason == FinishReason::none && !settling_) {
            end_where_due(result);
        }
    }
    return stamped(std::move(result));
}

bool Sequence::is_marked(Token token, const Tokenizer & tokenizer) const {
    const std::vector<std::string> & marks = request_.marks;
    return !marks.empty() && tokenizer.is_control(token) &&
           std::find(marks.begin(), marks.end(), tokenizer.literal(token)) != marks.end();
}

std::optional<Event> Sequence::go_on(const Tokenizer & tokenizer) {
    if (!held_.empty()) {
        std::vector<float> logits = std::exchange(held_, {});
        return sample(logits.data(), tokenizer);
    }
    settling_ = false;
    Event result = event(EventKind::text);
    end_where_due(result);
    if (result.reason == FinishReason::none) {
        return std::nullopt;
    }
    return stamped(std::move(result));
}

void Sequence::end_where_due(Event & event) {
    const bool complete = guide_ != nullptr && guide_->complete();
    if (complete || usage_.n_generated >= max_tokens_) {
        take(text_.finish(), event);
        if (event.reason == FinishReason::none) {
            event.reason = complete ? FinishReason::stop : FinishReason::length;
        }
    }
}

// With the state after its token.
Event Sequence::stamped(Event event) {
    if (event.reason != FinishReason::none) {
        ended_ = true;
        end_draft();
        event.kind = EventKind::finished;
        for (const TokenLogprob & cut : undecided_) {  // by a stop string: its text is not told, its number is
            note_token(cut.token, event);
        }
        undecided_.clear();
    }
    event.usage = usage_;
    event.timings = timings();
    return event;
}

void Sequence::take(const TextStream::Out & out, Event & event) {
    event.text += out.text;
    event.reason = out.reason;
    event.stop = out.reason == FinishReason::stop ? out.match : event.stop;
    for (int32_t i = 0; i < out.n_tokens_done && !undecided_.empty(); ++i) {
        note_token(undecided_.front().token, event);
        if (request_.sampling.n_logprobs >= 0) {
            event.logprobs.push_back(std::move(undecided_.front()));
        }
        undecided_.pop_front();
    }
}

void Sequence::note_token(Token token, Event & event) const {
    if (request_.return_tokens) {
        event.tokens.push_back(token);
    }
}

Event Sequence::progress() const {
    Event result = event(EventKind::progress);
    result.progress = static_cast<float>(n_past) / static_cast<float>(std::max(1, n_prompt()));
    return result;
}

Event Sequence::pooled(std::vector<float> values) {
    ended_ = true;
    Event result = event(EventKind::embedding);
    result.embedding = std::move(values);
    return result;
}

Event Sequence::failed(const std::string & code, const std::string & message) {
    ended_ = true;
    Event result = event(EventKind::error);
    result.code = code;
    result.text = message;
    return result;
}

}  // namespace pgl
