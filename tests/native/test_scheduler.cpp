// A scheduler: how much of a prompt a step reads, by who waits for it and by what earlier chunks took.
#include "check.h"
#include "engine/scheduler.h"

using namespace pgl;

namespace {

constexpr int32_t kBatch = 2048;
const Running reads = {0, 10000, {}, 0}, decodes = {1, 0, {}, 0};   // slot, tokens of the prompt that are left

void alone_a_prompt_is_read_in_batches_where_a_pass_can_be_stopped() {
    Scheduler scheduler(kBatch);
    CHECK_EQ(scheduler.plan({reads}).n_prefill, kBatch);
    scheduler.observe_prefill(kBatch, 10000);   // slow: five milliseconds a token
    CHECK_EQ(scheduler.plan({reads}).n_prefill, kBatch);
    CHECK_EQ(scheduler.plan({{0, 7, {}, 0}}).n_prefill, 7);
}

// Beside others, and on a device whose passes cannot be stopped, a chunk takes no longer than 200 ms.
void otherwise_in_chunks_of_the_time_that_may_pass() {
    for (const bool can_abort : {true, false}) {
        const std::vector<Running> running = can_abort ? std::vector<Running>{reads, decodes} : std::vector{reads};
        Scheduler scheduler(kBatch, can_abort);
        CHECK_EQ(scheduler.plan(running).n_prefill, 64);   // nothing is known yet
        scheduler.observe_prefill(64, 64);
        CHECK_EQ(scheduler.plan(running).n_prefill, 192);   // a millisecond a token: 200, in steps of 32
        Scheduler slow(kBatch, can_abort);
        slow.observe_prefill(64, 6400);
        CHECK_EQ(slow.plan(running).n_prefill, 32);   // the least
        Scheduler fast(kBatch, can_abort);
        fast.observe_prefill(64, 0.64);
        CHECK_EQ(fast.plan(running).n_prefill, kBatch);
    }
}

void prompts_take_turns() {
    Scheduler scheduler(kBatch);
    const std::vector<Running> prompts = {{2, 500, {}, 0}, {0, 500, {}, 0}, {5, 500, {}, 0}};
    for (const int32_t slot : {0, 2, 5, 0}) {
        CHECK_EQ(scheduler.plan(prompts).prefill, slot);
    }
}

void holes_between_slots_are_padded() {
    Scheduler scheduler(kBatch);
    const StepPlan plan = scheduler.plan({{4, 0, {}, 0}, {1, 0, {}, 0}});
    CHECK_EQ(plan.decode.size(), 1u);
    CHECK(plan.decode[0].slots == std::vector<int32_t>({1, 4}));
    CHECK(plan.decode[0].padding == std::vector<int32_t>({2, 3}));
    CHECK_EQ(plan.prefill, -1);
}

void each_set_of_adapters_has_a_pass() {
    Scheduler scheduler(kBatch, true, true);
    const StepPlan plan = scheduler.plan({{4, 0, {0.9f}, 0, 1}, {1, 0, {}, 0, 0}, {2, 0, {}, 0, 1}, {0, 9, {}, 0, 2}});
    CHECK_EQ(plan.decode.size(), 2u);
    CHECK(plan.decode[0].slots == std::vector<int32_t>({1}));
    CHECK(plan.decode[1].slots == std::vector<int32_t>({2, 4}));
    CHECK(plan.decode[1].padding == std::vector<int32_t>({3}));
    CHECK_EQ(plan.n_draft, 0);   // for one that decodes alone
    CHECK_EQ(plan.prefill, 0);
    CHECK_EQ(scheduler.plan({{4, 0, {0.9f}, 0, 1}, {0, 9, {}, 0, 2}}).n_draft, 1);
}

}  // namespace

int main() {
    alone_a_prompt_is_read_in_batches_where_a_pass_can_be_stopped();
    otherwise_in_chunks_of_the_time_that_may_pass();
    prompts_take_turns();
    holes_between_slots_are_padded();
    each_set_of_adapters_has_a_pass();
    return check::result("scheduler");
}
