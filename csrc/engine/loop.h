// Loop: the engine's own thread. It loads the model, then over and over: admit, plan, decode, sample, prefill, publish.
#pragma once

#include "engine/draft.h"
#include "engine/mask_worker.h"
#include "engine/shared_state.h"
#include "request.h"

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

namespace pgl {

class Crew;
class DraftModel;
class KvCache;
class Scheduler;
struct Batch;
struct Running;
struct DecodePass;
struct StepPlan;

// Everything here runs on one thread, the only one that touches llama.cpp's state.
class Loop {
  public:
    explicit Loop(SharedState & shared);
    ~Loop();

    // Returns when the load failed or the engine was closed; every request has had its last event then, and the model
    // is freed. Never throws: a failure is an `error` event of id 0.
    void run();

  private:
    using Rows = std::vector<std::pair<Sequence *, float *>>;  // sequences and their logits

    void work();
    bool load(const EngineOptions & options);
    bool step();
    bool after_failure(const Error & error);
    bool leave_gpu(const Error & lost);
    void note_memory();
    void take_inbox(std::vector<SequencePtr> & arrived, std::unordered_set<RequestId> & cancelled, bool & closing);
    void drop_cancelled(const std::unordered_set<RequestId> & cancelled);
    void admit();
    void propose(std::vector<Running> & running);
    void guess(Sequence & sequence);
    void decode(const DecodePass & pass, int32_t n_draft);
    void verify(Sequence & sequence, double elapsed_ms);
    void prefill(const StepPlan & plan);
    void pool(Sequence & sequence);
    bool compute(const Batch & batch, const std::vector<Sequence *> & participants);
    void sample(const Rows & rows);
    void wait_for(std::chrono::microseconds patience, const std::function<bool()> & done);
    void wait_for_masks(const Rows & late);
    template <typename Work> void tell(Sequence & sequence, const Work & work);
    void go_on_after_masks();
    void wait_for_a_mask();
    void end_all(const std::string & code, const std::string & message);
    void remove_ended();
    void publish(Event event);
    void flush();
    void count();
    void idle_check();
    Sequence * in_slot(int32_t slot) const;

    SharedState & shared_;
    std::shared_ptr<Model> model_;
    std::unique_ptr<KvCache> cache_;
    std::unique_ptr<Scheduler> scheduler_;
    std::unique_ptr<DraftModel> draft_model_;  // null = none
    Draft draft_;  // for the one that decodes alone in this step
    bool guessed_ = false;  // it is the draft model's
    std::deque<SequencePtr> waiting_;
    std::vector<SequencePtr> running_;
    std::vector<Event> events_;  // of this step, not yet delivered
    Stats of_ended_;  // tokens
    bool checked_ = true;  // the cache was checked since it last changed
    std::unique_ptr<MaskWorker> masks_;
    std::unique_ptr<Crew> crew_;
};

}  // namespace pgl
