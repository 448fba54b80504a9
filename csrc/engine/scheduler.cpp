#include "engine/scheduler.h"

#include <algorithm>
#include <cmath>

namespace pgl {
namespace {

constexpr int32_t kChunkStep = 32;   // shorter chunks pay a whole pass over the weights for too few tokens

}  // namespace

StepPlan Scheduler::plan(const std::vector<Running> & running) {
    StepPlan plan;
    std::vector<Running> prompts;
    for (const Running & sequence : running) {
        if (sequence.n_remaining > 0) {
            prompts.push_back(sequence);
        } else {
            plan.decode.push_back(sequence.slot);
        }
    }
    std::sort(plan.decode.begin(), plan.decode.end());
    for (size_t i = 1; i < plan.decode.size(); ++i) {
        for (int32_t slot = plan.decode[i - 1] + 1; slot < plan.decode[i]; ++slot) {
            plan.padding.push_back(slot);
        }
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
