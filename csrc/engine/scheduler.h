// Scheduler: running sequences -> a StepPlan, who feeds which tokens in this step. Decides; runs nothing. Pure.
#pragma once

#include "request.h"

#include <cstdint>
#include <vector>

namespace pgl {

// One running sequence as the scheduler sees it.
struct Running {
    int32_t slot = 0;
    int32_t n_remaining = 0;   // prompt tokens not yet in the cache; 0 = decoding
};

// A step: one token for each decoding sequence, then a chunk of one prompt. They are two passes over the weights: the
// non-unified cache runs sequences of unequal length apart anyway, and between them the decoded tokens leave.
struct StepPlan {
    std::vector<int32_t> decode;    // slots, ascending
    std::vector<int32_t> padding;   // slots between them that get a padding token: one pass wants consecutive slots
    int32_t prefill = -1;           // slot, -1 = none
    int32_t n_prefill = 0;          // tokens of it
};

class Scheduler {
  public:
    // `can_abort`: a pass under way can be stopped.
    explicit Scheduler(int32_t n_batch, bool can_abort = true, double stall_ms = 200)
        : n_batch_(n_batch), can_abort_(can_abort), stall_ms_(stall_ms) {}

    // Prompts take turns, a chunk each, so a long one never holds back a short one. While others decode, a chunk is no
    // longer than they may be kept waiting (stall_ms); alone it is a whole batch, where a cancel can stop that.
    StepPlan plan(const std::vector<Running> & running);

    // What a prefill of n tokens really took: the next chunk is sized by it.
    void observe_prefill(int32_t n_tokens, double elapsed_ms);

    // The free slot that keeps the running ones closest together (fewest padding tokens); the first of equals. -1:
    // none.
    static int32_t choose_slot(const std::vector<int32_t> & free, const std::vector<int32_t> & running);

  private:
    int32_t n_batch_;
    bool can_abort_;
    double stall_ms_;
    double ms_per_token_ = 0;   // 0 = not measured yet
    int32_t last_prefill_ = -1;
};

}  // namespace pgl
