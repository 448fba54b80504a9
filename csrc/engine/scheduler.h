// Scheduler: running sequences -> a StepPlan, who feeds which tokens in this step. Decides; runs nothing. Pure.
#pragma once

#include "engine/draft.h"
#include "engine/row_costs.h"
#include "request.h"

#include <cstdint>
#include <vector>

namespace pgl {

// One running sequence as the scheduler sees it.
struct Running {
    int32_t slot = 0;
    int32_t n_remaining = 0;   // prompt tokens not yet in the cache; 0 = decoding
    std::vector<float> odds;   // of its draft: the chance that tokens 0..i all come true
    double may_lose_ms = 0;    // a draft that could cost more than this is too long
    int32_t adapters = 0;      // a number for those that it runs with: a pass has one set
};

// A pass that gives each of its sequences a token.
struct DecodePass {
    std::vector<int32_t> slots;     // ascending
    std::vector<int32_t> padding;   // slots between them that get a padding token: one pass wants consecutive slots
};

// A step: one token for each decoding sequence, then a chunk of one prompt. They are two passes over the weights: the
// non-unified cache runs sequences of unequal length apart anyway, and between them the decoded tokens leave.
struct StepPlan {
    std::vector<DecodePass> decode;   // one for each set of adapters
    int32_t n_draft = 0;            // tokens of the draft of the only one that decodes, computed beside its own
    int32_t prefill = -1;           // slot, -1 = none
    int32_t n_prefill = 0;          // tokens of it
};

class Scheduler {
  public:
    // `can_abort`: a pass under way can be stopped. `always_draft`: whatever it costs.
    explicit Scheduler(int32_t n_batch, bool can_abort = true, bool always_draft = false, double stall_ms = 200)
        : n_batch_(n_batch), can_abort_(can_abort), always_draft_(always_draft), stall_ms_(stall_ms) {}

    // Prompts take turns, a chunk each, so a long one never holds back a short one. While others decode, a chunk is no
    // longer than they may be kept waiting (stall_ms); alone it is a whole batch, where a cancel can stop that.
    // A draft is as long as promises the most tokens in a millisecond.
    StepPlan plan(const std::vector<Running> & running);

    // What a prefill of n tokens really took: the next chunk is sized by it.
    void observe_prefill(int32_t n_tokens, double elapsed_ms);

    // The same for a pass with so many rows of one sequence.
    void observe_decode(int32_t n_rows, double elapsed_ms) { costs_.observe(n_rows, elapsed_ms); }
    double alone_ms() const { return costs_.ms(1); }

    // Whether to have tokens guessed at `token_ms` each, which usually come true with these odds, in place of a draft
    // that was looked up.
    bool worth_guessing(float odds, double token_ms, const std::vector<float> & looked_up, double may_lose_ms) const;
    // Whether a draft should have another token, its n-th, which is true with these odds and takes so long to guess.
    bool worthwhile(int32_t n_tokens, float odds, double token_ms) const;

    // After a pass with a draft: what it gained or lost, with the change back to passes of one row.
    void settle(DraftBudget & budget, int32_t n_draft, double elapsed_ms, int32_t n_tokens) const;

    // The free slot that keeps the running ones closest together (fewest padding tokens); the first of equals. -1:
    // none.
    static int32_t choose_slot(const std::vector<int32_t> & free, const std::vector<int32_t> & running);

  private:
    struct Choice {
        int32_t n_draft;
        double rate;   // tokens in a millisecond
    };
    Choice choose_draft(const std::vector<float> & odds, double may_lose_ms, double token_ms = 0) const;

    int32_t n_batch_;
    bool can_abort_, always_draft_;
    double stall_ms_;
    double ms_per_token_ = 0;   // 0 = not measured yet
    int32_t last_prefill_ = -1;
    RowCosts costs_;
};

}  // namespace pgl
