#include "engine/sampler.h"

#include "engine/dry.h"
#include "engine/guide.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <utility>

namespace pgl {
namespace {

constexpr float kNegligible = 20.723266f;  // -ln(1e-9)

// Largest value; NaN if any value is NaN. Eight lanes, so that the compiler keeps them in vector registers.
float maximum(const float * values, int32_t n) {
    constexpr int kLanes = 8;
    float best[kLanes], sum[kLanes] = {};
    std::fill(best, best + kLanes, -std::numeric_limits<float>::infinity());
    int32_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        for (int lane = 0; lane < kLanes; ++lane) {
            const float value = values[i + lane];
            best[lane] = value > best[lane] ? value : best[lane];
            sum[lane] += value != value ? 1.0f : 0.0f;
        }
    }
    float result = best[0], nan = sum[0];
    for (int lane = 1; lane < kLanes; ++lane) {
        result = std::max(result, best[lane]);
        nan += sum[lane];
    }
    for (; i < n; ++i) {
        result = std::max(result, values[i]);
        nan += values[i] != values[i] ? 1.0f : 0.0f;
    }
    return nan > 0 ? std::numeric_limits<float>::quiet_NaN() : result;
}

// Uniform in [0, 1) from (seed, index): SplitMix64 (Steele, Lea and Flood 2014) as a counter-based generator, so that a
// draw does not depend on how many came before it elsewhere.
double uniform(uint64_t seed, uint64_t index) {
    uint64_t z = seed + (index + 1) * 0x9E3779B97F4A7C15ULL;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    z ^= z >> 31;
    return static_cast<double>(z >> 11) * 0x1.0p-53;
}

TokenLogprob entry_of(Token token, float logprob, int32_t rank) {
    TokenLogprob entry;
    entry.token = token;
    entry.logprob = logprob;
    entry.rank = rank;
    return entry;
}

}  // namespace

Sampler::Sampler(const SamplingParams & params, const std::vector<Token> & prompt, int32_t n_vocab,
                 SamplerTokens tokens)
    : params_(params), n_vocab_(n_vocab), tokens_(std::move(tokens)),
      looks_back_((params.repetition_penalty != 1.0f && params.repeat_last_n > 0) || params.dry_multiplier > 0 ||
                  !tokens_.bad.empty()),
      n_prompt_(prompt.size()), aim_(2 * params.mirostat_tau) {
    if (params_.repetition_penalty != 1.0f && params_.repeat_last_n < 0) {
        seen_.insert(prompt.begin(), prompt.end());
    }
    if (looks_back_) {
        history_ = prompt;
    }
}

Token Sampler::sample(float * logits, TokenLogprob * logprob, Guide * guide, bool goes_on, Token due) {
    std::vector<float> raw;
    if (logprob != nullptr && !params_.post_sampling_probs) {
        raw.assign(logits, logits + n_vocab_);
    }
    if (guide != nullptr) {
        guide->mask(logits);
    }
    Token chosen = due;
    if (due >= 0 && std::isfinite(logits[due])) {
        candidates_.assign(1, {logits[due], due, 1});
    } else {
        chosen = choose(logits, goes_on);
    }
    if (guide != nullptr) {
        guide->chosen(chosen);
    }
    remember(chosen);
    if (logprob != nullptr) {
        *logprob = params_.post_sampling_probs
                       ? describe_drawn(chosen)
                       : describe(raw.data(), n_vocab_, chosen, params_.n_logprobs, params_.logprob_token_ids);
    }
    return chosen;
}

Token Sampler::choose(float * logits, bool goes_on) {
    rule_out(logits, goes_on);
    penalise(logits);
    const float best = maximum(logits, n_vocab_);
    if (!std::isfinite(best)) {
        throw Error("numeric_error", std::isnan(best) ? "the model produced NaN logits"
                                     : best > 0       ? "the model produced infinite logits"
                                                      : "every token is ruled out");
    }
    if (params_.temperature <= 0 || params_.top_k == 1 || params_.top_p <= 0) {
        const auto chosen = static_cast<Token>(std::find(logits, logits + n_vocab_, best) - logits);
        candidates_.assign(1, {best, chosen, 1});
        return chosen;
    }
    gather(logits, best);
    if (params_.mirostat > 0) {
        return draw_by_surprise();
    }
    filter();
    exclude_top_choices();
    return draw();
}

void Sampler::remember(Token token) {
    if (params_.repetition_penalty != 1.0f && params_.repeat_last_n < 0) {
        seen_.insert(token);
    }
    if (params_.frequency_penalty != 0 || params_.presence_penalty != 0) {
        ++counts_[token];
    }
    if (looks_back_) {
        history_.push_back(token);
    }
}

void Sampler::rule_out(float * logits, bool goes_on) const {
    constexpr float kNever = -std::numeric_limits<float>::infinity();
    if (!params_.allowed_token_ids.empty()) {
        std::vector<std::pair<Token, float>> allowed;
        for (const Token token : params_.allowed_token_ids) {
            allowed.emplace_back(token, logits[token]);
        }
        std::fill(logits, logits + n_vocab_, kNever);
        for (const auto & [token, logit] : allowed) {
            logits[token] = logit;
        }
    }
    if (goes_on) {
        for (const Token token : tokens_.ends) {
            logits[token] = kNever;
        }
    }
    for (const std::vector<Token> & bad : tokens_.bad) {
        const size_t n_before = bad.size() - 1, n_said = history_.size() - n_prompt_;
        if (n_before <= n_said &&
            std::equal(bad.begin(), bad.end() - 1, history_.end() - static_cast<std::ptrdiff_t>(n_before))) {
            logits[bad.back()] = kNever;
        }
    }
}

void Sampler::penalise(float * logits) const {
    for (const auto & [token, bias] : params_.logit_bias) {
        logits[token] += bias;
    }
    const auto repeated = [&](const std::unordered_set<Token> & tokens) {
        for (const Token token : tokens) {
            float & logit = logits[token];
            logit = logit > 0 ? logit / params_.repetition_penalty : logit * params_.repetition_penalty;
        }
    };
    repeated(seen_);
    if (params_.repetition_penalty != 1.0f && params_.repeat_last_n > 0) {
        const auto n = std::min(history_.size(), static_cast<size_t>(params_.repeat_last_n));
        repeated({history_.end() - static_cast<std::ptrdiff_t>(n), history_.end()});
    }
    for (const auto & [token, count] : counts_) {
        logits[token] -= params_.frequency_penalty * static_cast<float>(count) + params_.presence_penalty;
    }
    if (params_.dry_multiplier > 0) {
        penalise_repetition(logits, params_, history_, tokens_.breakers);
    }
}

// The temperature itself, or one that grows with how undecided the model is: entropy over its greatest possible value.
float Sampler::temperature(const float * logits, float best) const {
    if (params_.dynatemp_range <= 0) {
        return params_.temperature;
    }
    double total = 0, weighted = 0;
    int32_t n = 0;
    for (Token token = 0; token < n_vocab_; ++token) {
        if (std::isfinite(logits[token])) {
            const double distance = static_cast<double>(logits[token]) - best, weight = std::exp(distance);
            total += weight;
            weighted += weight * distance;
            ++n;
        }
    }
    const double entropy = std::log(total) - weighted / total, most = std::log(std::max(n, 2));
    const float low = std::max(0.0f, params_.temperature - params_.dynatemp_range);
    const float high = params_.temperature + params_.dynatemp_range;
    const auto part = static_cast<float>(std::pow(std::clamp(entropy / most, 0.0, 1.0), params_.dynatemp_exponent));
    return std::max(low + (high - low) * part, 1e-3f);
}

// The least logit that may be drawn.
float Sampler::floor(const float * logits, float best, float temperature) const {
    const float negligible = best - kNegligible * temperature;
    if (params_.top_n_sigma <= 0 || params_.mirostat > 0) {
        return negligible;
    }
    double sum = 0, squares = 0;
    int32_t n = 0;
    for (Token token = 0; token < n_vocab_; ++token) {
        if (std::isfinite(logits[token])) {
            const double distance = static_cast<double>(logits[token]) - best;
            sum += distance;
            squares += distance * distance;
            ++n;
        }
    }
    const double variance = std::max(0.0, squares / n - (sum / n) * (sum / n));
    return std::max(negligible, best - params_.top_n_sigma * static_cast<float>(std::sqrt(variance)));
}

// Everything not negligible against the best, in token order.
void Sampler::gather(const float * logits, float best) {
    const float degrees = temperature(logits, best);
    const float least = floor(logits, best, degrees);
    const float scale = 1 / degrees;
    candidates_.clear();
    for (Token token = 0; token < n_vocab_; ++token) {
        if (logits[token] >= least) {
            const float logit = (logits[token] - best) * scale;
            candidates_.push_back({logit, token, std::exp(logit)});
        }
    }
}

void Sampler::filter() {
    const bool use_top_k = params_.top_k > 0 && params_.top_k < static_cast<int32_t>(candidates_.size());
    if (use_top_k || params_.top_p < 1 || params_.min_p > 0 || params_.typical_p < 1) {
        // A heap hands out the likeliest first and is left as soon as a limit is met: no full sort.
        const auto less = [](const Candidate & a, const Candidate & b) {
            return a.logit < b.logit || (a.logit == b.logit && a.token > b.token);
        };
        const auto limit = use_top_k ? static_cast<size_t>(params_.top_k) : candidates_.size();
        std::vector<Candidate> kept;
        double total = total_weight(candidates_);
        std::make_heap(candidates_.begin(), candidates_.end(), less);
        const auto pop = [&] {
            std::pop_heap(candidates_.begin(), candidates_.end(), less);
            kept.push_back(candidates_.back());
            candidates_.pop_back();
        };
        if (use_top_k) {  // top_p's mass is that of what top_k leaves
            while (kept.size() < limit) {
                pop();
            }
            total = total_weight(kept);
            double mass = 0;
            size_t n = 0;
            while (n < kept.size() && (n == 0 || (mass < params_.top_p * total && kept[n].weight >= params_.min_p))) {
                mass += kept[n++].weight;
            }
            kept.resize(n);
        } else {
            double mass = 0;
            while (!candidates_.empty() &&
                   (kept.empty() || (mass < params_.top_p * total && candidates_.front().weight >= params_.min_p))) {
                mass += candidates_.front().weight;
                pop();
            }
        }
        candidates_ = std::move(kept);
    }
    if (params_.typical_p < 1) {
        const double total = total_weight(candidates_);
        double entropy = 0;
        const double log_total = std::log(total);
        for (const Candidate & c : candidates_) {
            entropy -= c.weight / total * (c.logit - log_total);
        }
        const auto surprise = [&](const Candidate & c) { return std::abs(log_total - c.logit - entropy); };
        std::stable_sort(candidates_.begin(), candidates_.end(),
                         [&](const Candidate & a, const Candidate & b) { return surprise(a) < surprise(b); });
        double mass = 0;
        size_t n = 0;
        while (n < candidates_.size() && (n == 0 || mass < params_.typical_p * total)) {
            mass += candidates_[n++].weight;
        }
        candidates_.resize(n);
    }
}

// With some probability, all that are likely enough but for the least likely of them.
void Sampler::exclude_top_choices() {
    if (params_.xtc_probability <= 0 || params_.xtc_threshold > 0.5f || candidates_.size() < 2 ||
        uniform(params_.seed, n_drawn_++) >= params_.xtc_probability) {
        return;
    }
    const double total = total_weight(candidates_);
    std::stable_sort(candidates_.begin(), candidates_.end(),
                     [](const Candidate & a, const Candidate & b) { return a.weight > b.weight; });
    const auto likely = [&](const Candidate & c) { return c.weight / total >= params_.xtc_threshold; };
    const auto end = std::find_if_not(candidates_.begin(), candidates_.end(), likely);
    if (end - candidates_.begin() > 1) {
        candidates_.erase(candidates_.begin(), end - 1);
    }
}

double Sampler::total_weight(const std::vector<Candidate> & candidates) {
    double total = 0;
    for (const Candidate & c : candidates) {
        total += c.weight;
    }
    return total;
}

Token Sampler::draw() {
    const double total = total_weight(candidates_);
    double rest = uniform(params_.seed, n_drawn_++) * total;
    for (const Candidate & c : candidates_) {
        rest -= c.weight;
        if (rest < 0) {
            return c.token;
        }
    }
    return candidates_.back().token;
}

// Mirostat: from tokens that surprise no more than aimed at; the aim follows what was drawn. Version 1 finds how many
// tokens those are from Zipf's law, fitted to the likeliest hundred; version 2 looks at each.
Token Sampler::draw_by_surprise() {
    std::stable_sort(candidates_.begin(), candidates_.end(),
                     [](const Candidate & a, const Candidate & b) { return a.weight > b.weight; });
    const double total = total_weight(candidates_);
    size_t n = 0;
    if (params_.mirostat == 1) {
        constexpr size_t kFitted = 100;
        double products = 0, squares = 0;
        for (size_t i = 0; i + 1 < std::min(kFitted, candidates_.size()); ++i) {
            const double rank = std::log(static_cast<double>(i + 2) / static_cast<double>(i + 1));
            products += rank * (candidates_[i].logit - candidates_[i + 1].logit);
            squares += rank * rank;
        }
        const double exponent = squares > 0 ? products / squares : 1, above_one = exponent - 1;
        const double most = (above_one * std::exp2(aim_)) / (1 - std::pow(static_cast<double>(n_vocab_), -above_one));
        const double wanted = std::pow(most, 1 / exponent);
        n = wanted >= 1 ? static_cast<size_t>(std::min(wanted, 1e9)) : 1;
    } else {
        while (n < candidates_.size() && -std::log2(candidates_[n].weight / total) <= aim_) {
            ++n;
        }
    }
    candidates_.resize(std::clamp<size_t>(n, 1, candidates_.size()));
    const Token chosen = draw();
    const auto drawn =
        std::find_if(candidates_.begin(), candidates_.end(), [&](const Candidate & c) { return c.token == chosen; });
    const double share = static_cast<double>(drawn->weight) / total_weight(candidates_);
    aim_ -= params_.mirostat_eta * static_cast<float>(-std::log2(share) - params_.mirostat_tau);
    return chosen;
}

TokenLogprob Sampler::describe(const float * logits, int32_t n_vocab, Token chosen, int32_t n_top,
                               const std::vector<Token> & ids) {
    const float best = maximum(logits, n_vocab);
    double total = 0;
    for (Token token = 0; token < n_vocab; ++token) {
        total += std::exp(static_cast<double>(logits[token] - best));
    }
    const double log_total = static_cast<double>(best) + std::log(total);
    const auto comes_first = [&](Token a, Token b) {
        return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
    };
    const auto rank_of = [&](Token token) {
        int32_t rank = 1;
        for (Token other = 0; other < n_vocab; ++other) {
            rank += comes_first(other, token) ? 1 : 0;
        }
        return rank;
    };
    const auto told = [&](Token token, int32_t rank) {
        return entry_of(token, static_cast<float>(logits[token] - log_total), rank);
    };
    TokenLogprob result = told(chosen, rank_of(chosen));
    if (!ids.empty()) {
        std::set<Token, decltype(comes_first)> asked(ids.begin(), ids.end(), comes_first);
        asked.insert(chosen);
        for (const Token token : asked) {
            result.top.push_back(told(token, rank_of(token)));
        }
        return result;
    }
    std::vector<Token> order(static_cast<size_t>(n_vocab));
    std::iota(order.begin(), order.end(), 0);
    const int32_t n = std::clamp(n_top, 0, n_vocab);
    std::partial_sort(order.begin(), order.begin() + n, order.end(), comes_first);
    for (int32_t i = 0; i < n; ++i) {
        result.top.push_back(told(order[static_cast<size_t>(i)], i + 1));
    }
    return result;
}

// What cannot be drawn is not told of.
TokenLogprob Sampler::describe_drawn(Token chosen) const {
    std::vector<Candidate> order = candidates_;
    std::sort(order.begin(), order.end(), [](const Candidate & a, const Candidate & b) {
        return a.weight > b.weight || (a.weight == b.weight && a.token < b.token);
    });
    const double total = total_weight(order);
    const std::vector<Token> & ids = params_.logprob_token_ids;
    const auto is_asked = [&](size_t i) {
        return ids.empty() ? static_cast<int32_t>(i) < params_.n_logprobs
                           : order[i].token == chosen || std::find(ids.begin(), ids.end(), order[i].token) != ids.end();
    };
    TokenLogprob result;
    std::vector<TokenLogprob> top;
    for (size_t i = 0; i < order.size(); ++i) {
        const auto logprob = static_cast<float>(std::log(order[i].weight / total));
        const TokenLogprob told = entry_of(order[i].token, logprob, static_cast<int32_t>(i) + 1);
        if (told.token == chosen) {
            result = told;
        }
        if (is_asked(i)) {
            top.push_back(told);
        }
    }
    result.top = std::move(top);
    return result;
}

}  // namespace pgl
