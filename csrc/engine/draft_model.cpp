#include "engine/draft_model.h"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace pgl {
namespace {

constexpr float kBelief = 4;    // guesses that a probability itself counts for
constexpr double kLearn = 0.2;

EngineOptions options_for(const Model & target, EngineOptions options) {
    options.n_ctx = target.info().n_ctx;
    options.max_streams = 1;
    options.prefix_cache_bytes = 0;
    options.embeddings = false;
    options.speculate = Speculate::off;
    options.lora.clear();
    return options;
}

[[noreturn]] void refuse(const std::string & why) {
    throw Error("invalid_request", "draft_model: " + why, {{"field", "draft_model"}});
}

}  // namespace

DraftModel::DraftModel(const Model & target, const EngineOptions & options,
                       const std::function<bool(float)> & on_progress, const Abort & abort) {
    if (!target.speculates({})) {
        refuse("the model is not drafted for: " + target.info().speculation);
    }
    try {
        model_ = std::make_unique<Model>(options.draft_model, options_for(target, options), on_progress, abort);
    } catch (const Error & e) {
        throw Error(e.code, std::string("draft_model: ") + e.what(), e.details);
    }
    if (!model_->can(Task::generate) || !model_->can_trim()) {
        refuse("a model of architecture " + model_->info().architecture +
               (model_->can(Task::generate) ? " cannot take tokens back" : " does not generate"));
    }
    // Some vocabularies are padded to different lengths; what both have must be the same.
    const Tokenizer &ours = model_->tokenizer(), &theirs = target.tokenizer();
    for (Token token = 0; token < std::min(ours.n_vocab(), theirs.n_vocab()); ++token) {
        if (ours.literal(token) != theirs.literal(token) || ours.is_end(token) != theirs.is_end(token)) {
            refuse("its vocabulary is another one: token " + std::to_string(token) + " is \"" + ours.literal(token) +
                   "\", and \"" + theirs.literal(token) + "\" in the model");
        }
    }
}

// Adds tokens to what it holds. False: aborted, and none was added.
bool DraftModel::compute(const std::vector<Token> & tokens) {
    Batch batch;
    for (const Token token : tokens) {
        const auto position = static_cast<int32_t>(held_.size() + batch.rows.size());
        batch.rows.push_back({token, position, 0, batch.rows.size() + 1 == tokens.size()});
    }
    const auto start = std::chrono::steady_clock::now();
    if (!model_->decode(batch)) {
        model_->trim(0, static_cast<int32_t>(held_.size()));
        return false;
    }
    held_.insert(held_.end(), tokens.begin(), tokens.end());
    last_row_ = static_cast<int32_t>(tokens.size()) - 1;
    if (tokens.size() == 1) {
        const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
        token_ms_ += (token_ms_ > 0 ? kLearn : 1) * (ms - token_ms_);
    }
    return true;
}

bool DraftModel::follow(const std::vector<Token> & tokens) {
    if (tokens.size() + kMaxRows > static_cast<size_t>(model_->info().n_ctx)) {
        return false;
    }
    size_t n_shared = 0;
    while (n_shared < std::min(held_.size(), tokens.size() - 1) && held_[n_shared] == tokens[n_shared]) {
        ++n_shared;
    }
    model_->trim(0, static_cast<int32_t>(n_shared));
    held_.resize(n_shared);
    const size_t n = std::min(tokens.size() - n_shared, static_cast<size_t>(model_->info().n_batch));
    const auto next = tokens.begin() + static_cast<std::ptrdiff_t>(n_shared);
    return compute({next, next + static_cast<std::ptrdiff_t>(n)}) && held_.size() == tokens.size();
}

Token DraftModel::likeliest(float & probability) const {
    const float * logits = model_->logits(last_row_);
    const float * end = logits + model_->info().n_vocab;
    const float * best = std::max_element(logits, end);
    double sum = 0;
    for (const float * logit = logits; logit < end; ++logit) {
        sum += std::exp(static_cast<double>(*logit - *best));
    }
    probability = static_cast<float>(1 / sum);
    return static_cast<Token>(best - logits);
}

Draft DraftModel::propose(int32_t limit, const std::function<bool(int32_t n_tokens, float odds)> & worthwhile) {
    Draft draft;
    grounds_.clear();
    float odds = 1;
    while (static_cast<int32_t>(draft.tokens.size()) < limit) {
        float probability = 0;
        const Token token = likeliest(probability);
        if (!(probability > 0)) {
            return draft;   // NaN
        }
        const size_t ground = std::min(kGrounds - 1, static_cast<size_t>(probability * kGrounds));
        odds *= (records_[ground].right + kBelief * probability) / (records_[ground].all + kBelief);
        draft.tokens.push_back(token);
        draft.odds.push_back(odds);
        grounds_.push_back(ground);
        const auto n = static_cast<int32_t>(draft.tokens.size());
        if (n == limit || !worthwhile(n + 1, odds * usual_odds()) || !compute({token})) {
            return draft;
        }
    }
    return draft;
}

void DraftModel::observe(size_t n_computed, size_t n_foretold) {
    for (size_t i = 0; i < std::min({n_computed, n_foretold + 1, grounds_.size()}); ++i) {
        records_[grounds_[i]].add(i < n_foretold);
        usual_.add(i < n_foretold);
    }
    grounds_.clear();
}

}  // namespace pgl
