#include "engine/sampler.h"

#include "engine/guide.h"

#include <algorithm>
#include <cmath>
#include <limits>

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

}  // namespace

Sampler::Sampler(const SamplingParams & params, const std::vector<Token> & prompt, int32_t n_vocab)
    : params_(params), n_vocab_(n_vocab) {
    if (params_.repetition_penalty != 1.0f) {
        seen_.insert(prompt.begin(), prompt.end());
    }
}

Token Sampler::sample(float * logits, TokenLogprob * logprob, Guide * guide) {
    std::vector<float> raw;
    if (logprob != nullptr) {
        raw.assign(logits, logits + n_vocab_);
    }
    if (guide != nullptr) {
        guide->mask(logits);
    }
    penalise(logits);
    const float best = maximum(logits, n_vocab_);
    if (!std::isfinite(best)) {
        throw Error("numeric_error", std::isnan(best) ? "the model produced NaN logits"
                                     : best > 0       ? "the model produced infinite logits"
                                                      : "every token is ruled out");
    }
    Token chosen;
    const bool greedy = params_.temperature <= 0 || params_.top_k == 1 || params_.top_p <= 0;
    if (greedy) {
        chosen = static_cast<Token>(std::find(logits, logits + n_vocab_, best) - logits);
    } else {
        gather(logits, best);
        filter();
        chosen = draw();
    }
    if (guide != nullptr) {
        guide->chosen(chosen);
    }
    if (params_.repetition_penalty != 1.0f) {
        seen_.insert(chosen);
    }
    if (params_.frequency_penalty != 0 || params_.presence_penalty != 0) {
        ++counts_[chosen];
    }
    if (logprob != nullptr) {
        *logprob = describe(raw, chosen);
    }
    return chosen;
}

void Sampler::penalise(float * logits) const {
    for (const auto & [token, bias] : params_.logit_bias) {
        logits[token] += bias;
    }
    for (const Token token : seen_) {
        float & logit = logits[token];
        logit = logit > 0 ? logit / params_.repetition_penalty : logit * params_.repetition_penalty;
    }
    for (const auto & [token, count] : counts_) {
        logits[token] -= params_.frequency_penalty * static_cast<float>(count) + params_.presence_penalty;
    }
}

// Everything not negligible against the best, in token order.
void Sampler::gather(const float * logits, float best) {
    const float floor = best - kNegligible * params_.temperature;
    const float scale = 1 / params_.temperature;
    candidates_.clear();
    for (Token token = 0; token < n_vocab_; ++token) {
        if (logits[token] >= floor) {
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
        double total = 0;
        for (const Candidate & c : candidates_) {
            total += c.weight;
        }
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
            total = 0;
            for (const Candidate & c : kept) {
                total += c.weight;
            }
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
        double total = 0, entropy = 0;
        for (const Candidate & c : candidates_) {
            total += c.weight;
        }
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

Token Sampler::draw() {
    double total = 0;
    for (const Candidate & c : candidates_) {
        total += c.weight;
    }
    double rest = uniform(params_.seed, n_drawn_++) * total;
    for (const Candidate & c : candidates_) {
        rest -= c.weight;
        if (rest < 0) {
            return c.token;
        }
    }
    return candidates_.back().token;
}

TokenLogprob Sampler::describe(const std::vector<float> & raw, Token chosen) const {
    const float best = maximum(raw.data(), n_vocab_);
    double total = 0;
    for (const float logit : raw) {
        total += std::exp(static_cast<double>(logit - best));
    }
    const double log_total = static_cast<double>(best) + std::log(total);
    const auto logprob = [&](Token token) {
        TokenLogprob entry;
        entry.token = token;
        entry.logprob = static_cast<float>(raw[static_cast<size_t>(token)] - log_total);
        return entry;
    };
    TokenLogprob result = logprob(chosen);
    const auto n = static_cast<size_t>(std::clamp(params_.n_logprobs, 0, n_vocab_));
    std::vector<Token> order(raw.size());
    for (size_t i = 0; i < order.size(); ++i) {
        order[i] = static_cast<Token>(i);
    }
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(n), order.end(),
                      [&](Token a, Token b) {
                          const float x = raw[static_cast<size_t>(a)], y = raw[static_cast<size_t>(b)];
                          return x > y || (x == y && a < b);
                      });
    for (size_t i = 0; i < n; ++i) {
        result.top.push_back(logprob(order[i]));
    }
    return result;
}

}  // namespace pgl
