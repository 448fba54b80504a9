#include "engine/scheduler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

namespace pgl {
namespace {

constexpr int32_t kChunkStep = 32;   // shorter chunks pay a whole pass over the weights for too few tokens
constexpr double kWorthwhile = 1.03;   // times the rate without a draft

}  // namespace

StepPlan Scheduler::plan(const std::vector<Running> & running) {
    StepPlan plan;
    std::vector<Running> prompts;
    std::map<int32_t, std::vector<int32_t>> decoding;   // slots, by their adapters
    const Running * last = nullptr;
    int32_t n_decoding = 0;
    for (const Running & sequence : running) {
        if (sequence.n_remaining > 0) {
            prompts.push_back(sequence);
        } else {
            decoding[sequence.adapters].push_back(sequence.slot);
            last = &sequence;
            ++n_decoding;
        }
    }
    if (n_decoding == 1) {
        plan.n_draft = always_draft_ ? static_cast<int32_t>(last->odds.size())
                                     : choose_draft(last->odds, last->may_lose_ms).n_draft;
    }
    for (auto & [adapters, slots] : decoding) {
        std::sort(slots.begin(), slots.end());
        DecodePass pass{slots, {}};
        for (size_t i = 1; i < slots.size(); ++i) {
            for (int32_t slot = slots[i - 1] + 1; slot < slots[i]; ++slot) {
                pass.padding.push_back(slot);
            }
        }
        plan.decode.push_back(std::move(pass));
    }
    if (!prompts.empty()) {
        std::sort(prompts.begin(), prompts.end(), [](const Running & a, const Running & b) { return a.slot < b.slot; });
        auto next = std::find_if(prompts.begin(), prompts.end(),
                                 [&](const Running & sequence) { return sequence.slot > last_prefill_; });
        if (next == prompts.end()) {
            next = prompts.begin();
        }
        int32_t limit = n_batch_;
        if (!can_abort_ || !plan.decode.empty() || prompts.size() > 1) {
            const double tokens = ms_per_token_ > 0 ? stall_ms_ / ms_per_token_ : 2.0 * kChunkStep;
            const auto steps = static_cast<int32_t>(std::min(tokens / kChunkStep, 1e6));
            limit = std::clamp(steps * kChunkStep, kChunkStep, n_batch_);
        }
        plan.prefill = last_prefill_ = next->slot;
        plan.n_prefill = std::min(limit, next->n_remaining);
    }
    return plan;
}

Scheduler::Choice Scheduler::choose_draft(const std::vector<float> & odds, double may_lose_ms, double token_ms) const {
    const int32_t horizon = costs_.horizon();   // 0 before the first passes
    if (horizon == 0) {
        return {0, 0};
    }
    const double alone_ms = costs_.ms(1);
    Choice best{0, 1 / alone_ms};
    double n_tokens = 1;
    for (size_t i = 0; i < odds.size() && static_cast<int32_t>(i) + 2 <= horizon; ++i) {
        const auto n_draft = static_cast<int32_t>(i) + 1;
        n_tokens += odds[i];
        const double ms = costs_.ms(n_draft + 1) + n_draft * token_ms;
        const double least = best.n_draft == 0 ? kWorthwhile * best.rate : best.rate;
        if (ms - alone_ms <= may_lose_ms && n_tokens / ms > least) {
            best = {n_draft, n_tokens / ms};
        }
    }
    return best;
}

bool Scheduler::worth_guessing(float odds, double token_ms, const std::vector<float> & looked_up,
                               double may_lose_ms) const {
    if (always_draft_) {
        return true;
    }
    constexpr double kAnything = std::numeric_limits<double>::infinity();
    std::vector<float> falling;
    for (float product = odds; falling.size() + 1 < kMaxRows; product *= odds) {
        falling.push_back(product);
    }
    return token_ms <= may_lose_ms &&
           choose_draft(falling, kAnything, token_ms).rate > choose_draft(looked_up, kAnything).rate;
}

bool Scheduler::worthwhile(int32_t n_tokens, float odds, double token_ms) const {
    if (always_draft_) {
        return true;
    }
    const double more_ms = costs_.ms(n_tokens + 1) - costs_.ms(n_tokens) + token_ms;
    return n_tokens < costs_.horizon() && odds * costs_.ms(1) > more_ms;
}

void Scheduler::settle(DraftBudget & budget, int32_t n_draft, double elapsed_ms, int32_t n_tokens) const {
    const double change_ms = costs_.change_ms();   // is in the costs of one row now
    const double usual_ms = costs_.ms(n_draft + 1);
    const double cost_ms = std::clamp(elapsed_ms, usual_ms / 2, 2 * usual_ms);  // what disturbed it is no draft's fault
    budget.drafted(cost_ms + change_ms, n_tokens, costs_.ms(1) - change_ms);
}

void Scheduler::observe_prefill(int32_t n_tokens, double elapsed_ms) {
    if (n_tokens < kChunkStep) {
        return;  // dominated by the pass over the weights
    }
    const double measured = elapsed_ms / n_tokens;
    ms_per_token_ = ms_per_token_ > 0 ? 0.7 * ms_per_token_ + 0.3 * measured : measured;
}

int32_t Scheduler::choose_slot(const std::vector<int32_t> & free, const std::vector<int32_t> & running) {
    int32_t best = -1, best_span = 0;
    for (const int32_t slot : free) {
        int32_t low = slot, high = slot;
        for (const int32_t other : running) {
            low = std::min(low, other);
            high = std::max(high, other);
        }
        if (best < 0 || high - low < best_span) {
            best = slot;
            best_span = high - low;
        }
    }
    return best;
}

}  // namespace pgl
