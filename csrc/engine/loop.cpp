#include "engine/loop.h"

#include "engine/crew.h"
#include "engine/draft_model.h"
#include "engine/kv_cache.h"
#include "engine/scheduler.h"
#include "llama/model.h"
#include "llama/pooler.h"
#include "platform/machine.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <map>
#include <optional>
#include <utility>

namespace pgl {
namespace {

// Bytes. Deep graphs and regular expressions of libstdc++ recurse; musl gives a thread no more than 128 KiB.
constexpr uint64_t kEngineStack = uint64_t{16} << 20;
// How long a step waits, at most and for all of them together, for masks that are not ready when its logits are.
constexpr auto kMaskWait = std::chrono::milliseconds(2);
// How long a step of one sequence waits before it begins, for a mask that may say what comes next.
constexpr auto kForcedWait = std::chrono::microseconds(200);
// The same of both where drafts are made whatever they cost: then no draft depends on how fast the machine is.
constexpr auto kEveryMask = std::chrono::seconds(10);
// Logits of a step from which on waking other threads is worth it: some hundred microseconds of one thread.
constexpr size_t kWorthSharing = size_t{1} << 19;
constexpr int32_t kMostSharing = 8;   // threads

// While it lives, a cancel of these sequences aborts what is computed for them, once nobody else waits for it.
class Abortable {
  public:
    Abortable(SharedState & shared, const std::vector<Sequence *> & sequences) : shared_(shared) {
        const std::lock_guard lock(shared_.mutex);
        for (const Sequence * sequence : sequences) {
            if (shared_.cancelled.count(sequence->id()) == 0) {
                shared_.computing.insert(sequence->id());
            }
        }
        wanted_ = !shared_.computing.empty() && !shared_.closing;
    }
    ~Abortable() {
        const std::lock_guard lock(shared_.mutex);
        shared_.computing.clear();
        shared_.abort.requested = shared_.closing;
    }
    Abortable(const Abortable &) = delete;
    Abortable & operator=(const Abortable &) = delete;

    bool wanted() const { return wanted_; }   // by anybody

  private:
    SharedState & shared_;
    bool wanted_;
};

// The place of `adapters` in a list that gets it where it is not there yet.
int32_t number_among(std::vector<AdapterScales> & list, const AdapterScales & adapters) {
    const auto found = std::find(list.begin(), list.end(), adapters);
    const auto n = static_cast<int32_t>(found - list.begin());
    if (found == list.end()) {
        list.push_back(adapters);
    }
    return n;
}

// Of an answer that has ended, as far as it came.
void add_seconds(Stats & stats, const Timings & timings) {
    if (timings.prefill_ms >= 0) {
        stats.prompt_seconds += (timings.prefill_ms - std::max(timings.queue_ms, 0.0)) / 1e3;
        stats.generation_seconds += std::max(timings.total_ms - timings.prefill_ms, 0.0) / 1e3;
    }
}

void add_generated(Stats & stats, const Usage & usage) {
    stats.n_generated_tokens += static_cast<uint64_t>(usage.n_generated);
    stats.n_accepted_tokens += static_cast<uint64_t>(usage.n_accepted);
    stats.n_rejected_tokens += static_cast<uint64_t>(usage.n_rejected);
}

}  // namespace

Loop::Loop(SharedState & shared)
    : shared_(shared), masks_(std::make_unique<MaskWorker>([&shared] {
          // Under the lock, so that a wait cannot miss it between looking and falling asleep.
          const std::lock_guard lock(shared.mutex);
          shared.wake_engine.notify_one();
      })) {}

Loop::~Loop() = default;

void Loop::run() {
    try {
        machine::run_with_stack(kEngineStack, [this] {
            const log::Scope scope(shared_.log);
            work();
        });
    } catch (const std::exception & e) {  // no memory for the thread itself
        Event failure;
        failure.kind = EventKind::error;
        failure.code = "out_of_memory";
        failure.text = e.what();
        publish(std::move(failure));
        flush();
    }
}

void Loop::work() {
    if (!load(shared_.options)) {
        return;
    }
    while (step()) {
    }
    running_.clear();
    waiting_.clear();
    masks_.reset();
    cache_.reset();
    draft_model_.reset();
    {
        const std::lock_guard lock(shared_.mutex);
        shared_.model.reset();
        shared_.grammars.reset();
    }
    model_.reset();
}

bool Loop::load(const EngineOptions & options) {
    Event failure;
    failure.kind = EventKind::error;
    try {
        const auto wanted = [this](float) {
            const std::lock_guard lock(shared_.mutex);
            return !shared_.closing && shared_.cancelled.count(0) == 0;
        };
        float shown = -1;
        const auto on_progress = [&](float value) {
            shared_.abort.note_progress();
            if (value - shown >= 0.01f || value >= 1) {
                shown = value;
                Event event;
                event.kind = EventKind::progress;
                event.progress = value;
                publish(std::move(event));
                flush();
            }
            return wanted(value);
        };
        const auto model = std::make_shared<Model>(shared_.path, options, on_progress, shared_.abort);
        cache_ = std::make_unique<KvCache>(*model, shared_.options.max_streams, model->info().prefix_cache_bytes);
        draft_model_.reset();
        if (!options.draft_model.empty()) {
            draft_model_ = std::make_unique<DraftModel>(*model, options, wanted, shared_.abort);
            model->add_draft_model(draft_model_->info());
        }
        crew_ = std::make_unique<Crew>(std::min(model->info().n_threads, kMostSharing));
        scheduler_ = std::make_unique<Scheduler>(shared_.options.n_batch, model->can_abort(),
                                                 shared_.options.speculate == Speculate::always);
        model_ = model;
        {
            const std::lock_guard lock(shared_.mutex);
            shared_.stats.n_cells = model->can(Task::generate) ? model->info().n_ctx * shared_.options.max_streams : 0;
            shared_.model = model;
            shared_.grammars.reset();   // of a model before
        }
        note_memory();
        Event event;
        event.kind = EventKind::loaded;
        event.progress = 1;
        publish(std::move(event));
        flush();
        return true;
    } catch (const Error & e) {
        failure.code = e.code;
        failure.text = e.what();
        failure.details = e.details;
    } catch (const std::bad_alloc &) {
        failure.code = "out_of_memory";
        failure.text = "memory ran out while loading the model";
    } catch (const std::exception & e) {
        failure.code = "internal_error";
        failure.text = e.what();
    }
    publish(std::move(failure));
    flush();
    return false;
}

bool Loop::step() {
    shared_.abort.note_progress();
    std::vector<SequencePtr> arrived;
    std::unordered_set<RequestId> cancelled;
    bool closing = false;
    take_inbox(arrived, cancelled, closing);
    std::move(arrived.begin(), arrived.end(), std::back_inserter(waiting_));
    if (closing) {
        end_all("engine_closed", "the engine was closed while this request ran");
        flush();
        return false;
    }
    try {
        drop_cancelled(cancelled);
        go_on_after_masks();
        admit();
        std::vector<Running> running;
        running.reserve(running_.size());
        std::vector<AdapterScales> adapters;   // in use
        for (const SequencePtr & sequence : running_) {
            if (!sequence->waits()) {
                const int32_t n = number_among(adapters, sequence->adapters());
                running.push_back({sequence->slot, sequence->n_remaining(), {}, 0, n});
            }
        }
        propose(running);
        const StepPlan plan = scheduler_->plan(running);
        if (running.empty()) {
            wait_for_a_mask();
        }
        for (const DecodePass & pass : plan.decode) {
            decode(pass, plan.n_draft);
        }
        flush();  // decoded tokens leave before the prompt chunk is computed
        prefill(plan);
        remove_ended();
    } catch (const Error & e) {
        return after_failure(e);
    } catch (const std::exception & e) {
        const Error error = model_->failed(e.what());
        end_all(error.code, error.what());   // also those that wait: they might have caused it
        return after_failure(error);
    }
    flush();
    return true;
}

// The model rebuilt its context: every running sequence's state is gone with it. False: the engine has ended.
bool Loop::after_failure(const Error & error) {
    for (const SequencePtr & sequence : running_) {
        if (!sequence->ended()) {
            publish(sequence->failed(error.code, error.what()));
        }
    }
    cache_->forget_all();
    running_.clear();
    flush();
    return error.code != "device_lost" || leave_gpu(error);
}

// Loads the model again without the GPU that is lost. What waits is answered from there, if the options allow it.
bool Loop::leave_gpu(const Error & lost) {
    log::write(log::error, lost.what());
    EngineOptions options = shared_.options;
    options.n_ctx = model_->info().n_ctx;   // what its users were told
    if (load(options)) {
        log::write(log::warning, "the model was loaded again: " + model_->info().placement);
        return true;
    }
    {
        const std::lock_guard lock(shared_.mutex);
        shared_.ended_by = lost;
    }
    end_all(lost.code, lost.what());
    flush();
    return false;
}

void Loop::note_memory() {
    std::map<std::string, uint64_t> bytes = model_->device_bytes();
    const std::lock_guard lock(shared_.mutex);
    shared_.stats.device_bytes = std::move(bytes);
}

// Blocks while there is nothing to do.
void Loop::take_inbox(std::vector<SequencePtr> & arrived, std::unordered_set<RequestId> & cancelled, bool & closing) {
    std::unique_lock lock(shared_.mutex);
    if (running_.empty() && waiting_.empty()) {
        if (shared_.inbox.empty() && !shared_.closing && !checked_) {
            lock.unlock();
            idle_check();
            lock.lock();
        }
        shared_.working = false;
        shared_.wake_engine.wait(lock, [this] { return !shared_.inbox.empty() || shared_.closing; });
        shared_.working = true;
    }
    arrived = std::exchange(shared_.inbox, {});
    cancelled = std::exchange(shared_.cancelled, {});
    closing = shared_.closing;
}

void Loop::drop_cancelled(const std::unordered_set<RequestId> & cancelled) {
    if (cancelled.empty()) {
        return;
    }
    const auto drop = [&](const SequencePtr & sequence) {
        if (cancelled.count(sequence->id()) == 0) {
            return false;
        }
        publish(sequence->failed("cancelled", "the request was cancelled"));
        if (sequence->slot >= 0) {
            cache_->release(sequence->slot);
        }
        return true;
    };
    waiting_.erase(std::remove_if(waiting_.begin(), waiting_.end(), drop), waiting_.end());
    running_.erase(std::remove_if(running_.begin(), running_.end(), drop), running_.end());
}

void Loop::admit() {
    // A text to embed or to rank needs no slot. One a step, so that running streams wait for no more than that.
    const auto text = std::find_if(waiting_.begin(), waiting_.end(),
                                   [](const SequencePtr & sequence) { return sequence->task() != Task::generate; });
    if (text != waiting_.end()) {
        const SequencePtr sequence = std::move(*text);
        waiting_.erase(text);
        pool(*sequence);
    }
    for (auto next = waiting_.begin(); next != waiting_.end();) {
        if ((*next)->task() != Task::generate) {
            ++next;
            continue;
        }
        // A prompt that is to be described is computed whole.
        const auto claim =
            cache_->claim((*next)->prompt(), (*next)->adapters(), (*next)->describes_prompt() ? 0 : INT32_MAX);
        if (!claim) {
            return;
        }
        (*next)->admitted(claim->slot, claim->n_cached);
        checked_ = false;
        running_.push_back(std::move(*next));
        next = waiting_.erase(next);
    }
}

Sequence * Loop::in_slot(int32_t slot) const {
    for (const SequencePtr & sequence : running_) {
        if (sequence->slot == slot) {
            return sequence.get();
        }
    }
    return nullptr;
}

// Runs one batch for these sequences. False: all of them were cancelled, or the engine closes; nothing was committed.
bool Loop::compute(const Batch & batch, const std::vector<Sequence *> & participants) {
    const Abortable pass(shared_, participants);
    if (!pass.wanted()) {
        return false;
    }
    struct CountStep {
        SharedState & shared;
        ~CountStep() {
            const std::lock_guard lock(shared.mutex);
            ++shared.stats.n_steps;
        }
    } const count{shared_};   // also one that throws
    return model_->decode(batch);
}

// Where one sequence decodes alone, a pass over the weights has room for a draft. Sequences that decode together bring
// one token each: a pass wants the same number of all.
void Loop::propose(std::vector<Running> & running) {
    draft_ = {};
    guessed_ = false;
    const auto decodes = [](const Running & one) { return one.n_remaining == 0; };
    const auto lone = std::find_if(running.begin(), running.end(), decodes);
    if (lone == running.end() || std::find_if(lone + 1, running.end(), decodes) != running.end()) {
        return;
    }
    Sequence & sequence = *in_slot(lone->slot);
    if (sequence.draft_limit() == 0) {
        return;
    }
    if (sequence.awaits_mask()) {  // it knows which tokens are forced
        wait_for(kForcedWait, [&] { return !sequence.awaits_mask(); });
    }
    draft_ = sequence.propose();
    lone->may_lose_ms = sequence.budget.may_lose_ms(scheduler_->alone_ms());
    if (draft_model_ && scheduler_->worth_guessing(draft_model_->usual_odds(), draft_model_->token_ms(), draft_.odds,
                                                   lone->may_lose_ms)) {
        guess(sequence);
        lone->may_lose_ms = sequence.budget.may_lose_ms(scheduler_->alone_ms());
    }
    lone->odds = draft_.odds;
}

// The draft model's guess in place of what was looked up. It must have read what the sequence has; a long prompt takes
// it several steps.
void Loop::guess(Sequence & sequence) {
    const Abortable abortable(shared_, {&sequence});
    const auto start = Sequence::Clock::now();
    try {
        std::vector<Token> tokens = cache_->tokens(sequence.slot);
        tokens.push_back(sequence.next_token());
        if (draft_model_->follow(tokens)) {
            const auto worthwhile = [&](int32_t n_tokens, float odds) {
                return scheduler_->worthwhile(n_tokens, odds, draft_model_->token_ms());
            };
            Draft guesses = draft_model_->propose(sequence.draft_limit(), worthwhile);
            guessed_ = !guesses.tokens.empty();
            draft_ = guessed_ ? std::move(guesses) : draft_;
        }
    } catch (const Error & e) {
        log::write(log::error, std::string("the draft model is left out from here on: ") + e.what());
        draft_model_.reset();
    }
    sequence.budget.lost(Sequence::ms_since(start));
}

void Loop::decode(const DecodePass & pass, int32_t n_draft) {
    const int32_t n_ctx = model_->info().n_ctx;
    std::vector<Sequence *> participants;
    std::vector<int32_t> padding;
    Batch batch;
    for (const int32_t slot : pass.slots) {
        participants.push_back(in_slot(slot));
        batch.rows.push_back({participants.back()->next_token(), participants.back()->n_past, slot, true});
    }
    batch.adapters = participants.front()->adapters();
    if (n_draft > 0) {
        Sequence & sequence = *participants.front();
        sequence.begin_draft({draft_.tokens.begin(), draft_.tokens.begin() + n_draft});
        for (const Token token : sequence.draft()) {
            batch.rows.push_back({token, batch.rows.back().position + 1, sequence.slot, true});
        }
    }
    if (model_->can_trim()) {
        for (const int32_t slot : pass.padding) {
            if (cache_->length(slot) < n_ctx) {
                padding.push_back(slot);
                batch.rows.push_back({batch.rows.front().token, cache_->length(slot), slot, false});
            }
        }
        std::stable_sort(batch.rows.begin(), batch.rows.end(),
                         [](const Batch::Row & a, const Batch::Row & b) { return a.sequence < b.sequence; });
    }
    const auto start = Sequence::Clock::now();
    const bool done = compute(batch, participants);
    for (const int32_t slot : padding) {
        cache_->rollback(slot);
    }
    if (!done) {
        for (Sequence * sequence : participants) {
            sequence->forget_draft();
            cache_->rollback(sequence->slot);
        }
        return;
    }
    const double ms = Sequence::ms_since(start);
    if (participants.size() == 1) {
        scheduler_->observe_decode(1 + n_draft, ms);
        participants.front()->budget.passed(ms);
    }
    if (n_draft > 0) {
        verify(*participants.front(), ms);
        remove_ended();
        return;
    }
    Rows ready, late;   // late: their masks are not
    for (size_t row = 0; row < batch.rows.size(); ++row) {
        if (batch.rows[row].logits) {
            Sequence & sequence = *in_slot(batch.rows[row].sequence);
            cache_->append(sequence.slot, batch.rows[row].token);
            ++sequence.n_past;
            float * logits = model_->logits(static_cast<int32_t>(row));
            (sequence.awaits_mask() ? late : ready).emplace_back(&sequence, logits);
        }
    }
    sample(ready);
    if (!late.empty()) {
        wait_for_masks(late);
    }
    remove_ended();
}

// The rows of a draft were computed on the guess that every token before them comes. They are sampled one after the
// other, as without a draft, for as long as that was so. Then the cache forgets the rest.
void Loop::verify(Sequence & sequence, double elapsed_ms) {
    const std::vector<Token> draft = sequence.draft();
    size_t n_sampled = 0, n_foretold = 0;
    do {
        cache_->append(sequence.slot, n_sampled == 0 ? sequence.next_token() : draft[n_sampled - 1]);
        ++sequence.n_past;
        float * logits = model_->logits(static_cast<int32_t>(n_sampled));
        if (sequence.awaits_mask()) {
            wait_for_masks({{&sequence, logits}});
        } else {
            sample({{&sequence, logits}});
        }
        ++n_sampled;
        n_foretold = std::max(n_foretold, sequence.n_foretold());
    } while (!sequence.ended() && !sequence.waits() && sequence.n_foretold() == n_sampled);
    sequence.end_draft();
    if (guessed_ && draft_model_) {
        draft_model_->observe(draft.size(), n_foretold);
    }
    scheduler_->settle(sequence.budget, static_cast<int32_t>(draft.size()), elapsed_ms,
                       static_cast<int32_t>(n_sampled));
    if (sequence.slot >= 0) {
        cache_->rollback(sequence.slot);
    }
}

// Blocks until something that the mask worker does is `done`, no longer than `patience`.
void Loop::wait_for(std::chrono::microseconds patience, const std::function<bool()> & done) {
    if (shared_.options.speculate == Speculate::always) {
        patience = kEveryMask;
    }
    std::unique_lock lock(shared_.mutex);
    shared_.wake_engine.wait_for(lock, patience,
                                 [&] { return shared_.closing || !shared_.cancelled.empty() || done(); });
}

// Logits whose masks come in time are sampled; the others are kept until a later step.
void Loop::wait_for_masks(const Rows & late) {
    const auto ready = [](const auto & row) { return !row.first->awaits_mask(); };
    wait_for(kMaskWait, [&] { return std::all_of(late.begin(), late.end(), ready); });
    Rows in_time;
    for (const auto & row : late) {
        if (ready(row)) {
            in_time.push_back(row);
        } else {
            row.first->hold(row.second, model_->info().n_vocab);
        }
    }
    sample(in_time);
}

void Loop::go_on_after_masks() {
    bool any = false;
    for (const SequencePtr & sequence : running_) {
        if (sequence->waits() && !sequence->awaits_mask()) {
            tell(*sequence, [&] { return sequence->go_on(model_->tokenizer()); });
            any = true;
        }
    }
    if (any) {
        remove_ended();
        flush();
    }
}

// For a step in which nothing can run: blocks while all that could be done is to sample after a mask.
void Loop::wait_for_a_mask() {
    const auto can_go_on = [](const SequencePtr & sequence) { return !sequence->awaits_mask(); };
    const auto needs_no_slot = [](const SequencePtr & sequence) { return sequence->task() != Task::generate; };
    if (running_.empty() || std::any_of(waiting_.begin(), waiting_.end(), needs_no_slot)) {
        return;
    }
    flush();
    std::unique_lock lock(shared_.mutex);
    shared_.working = false;
    shared_.wake_engine.wait(lock, [&] {
        return shared_.closing || !shared_.inbox.empty() || !shared_.cancelled.empty() ||
               std::any_of(running_.begin(), running_.end(), can_go_on);
    });
    shared_.working = true;
}

void Loop::prefill(const StepPlan & plan) {
    Sequence * sequence = plan.prefill < 0 ? nullptr : in_slot(plan.prefill);
    if (sequence == nullptr) {
        return;
    }
    Batch batch;
    batch.adapters = sequence->adapters();
    const bool describes = sequence->describes_prompt();
    const int32_t n_prefill = describes ? std::min(plan.n_prefill, kMaxRows) : plan.n_prefill;
    for (int32_t i = 0; i < n_prefill; ++i) {
        const int32_t position = sequence->n_past + i;
        const bool logits = describes || position == sequence->n_prompt() - 1;
        batch.rows.push_back({sequence->prompt()[static_cast<size_t>(position)], position, sequence->slot, logits});
    }
    const auto start = Sequence::Clock::now();
    if (!compute(batch, {sequence})) {
        cache_->rollback(sequence->slot);
        return;
    }
    for (const Batch::Row & row : batch.rows) {
        cache_->append(sequence->slot, row.token);
    }
    for (int32_t i = 0; describes && i < n_prefill; ++i) {
        sequence->describe_prompt(model_->logits(i), sequence->n_past + i, model_->tokenizer());
    }
    sequence->n_past += n_prefill;
    if (sequence->n_remaining() > 0) {
        publish(sequence->progress());
    } else if (sequence->says_nothing()) {
        sequence->prefilled();
        publish(sequence->closed());
    } else {
        float * logits = model_->logits(n_prefill - 1);
        sequence->prefilled();
        sample({{sequence, logits}});
    }
    if (!describes) {
        scheduler_->observe_prefill(n_prefill, Sequence::ms_since(start));
    }
}

// Sequences know nothing of each other, so that their tokens can be chosen side by side. What follows from them is told
// in order.
void Loop::sample(const Rows & rows) {
    struct Outcome {
        std::optional<Event> event;
        std::exception_ptr failure;
    };
    std::vector<Outcome> outcomes(rows.size());
    const auto choose = [&](size_t i) {
        try {
            outcomes[i].event = rows[i].first->sample(rows[i].second, model_->tokenizer());
        } catch (...) {
            outcomes[i].failure = std::current_exception();
        }
    };
    if (rows.size() > 1 && rows.size() * static_cast<size_t>(model_->info().n_vocab) >= kWorthSharing) {
        crew_->share(rows.size(), choose);
    } else {
        for (size_t i = 0; i < rows.size(); ++i) {
            choose(i);
        }
    }
    for (size_t i = 0; i < rows.size(); ++i) {
        tell(*rows[i].first, [&] {
            if (outcomes[i].failure) {
                std::rethrow_exception(outcomes[i].failure);
            }
            return std::move(outcomes[i].event);
        });
    }
}

// Publishes what `work` makes of a sequence, and has its next mask computed.
template <typename Work> void Loop::tell(Sequence & sequence, const Work & work) {
    try {
        if (std::optional<Event> event = work()) {
            publish(std::move(*event));
        }
        if (sequence.awaits_mask() && !sequence.ended()) {
            masks_->compute(sequence.guide());
        }
    } catch (const Error & e) {
        Event event = sequence.failed(e.code, e.what());
        event.details = e.details;
        publish(std::move(event));
        cache_->discard(sequence.slot);
        sequence.slot = -1;
    }
}

void Loop::pool(Sequence & sequence) {
    sequence.admitted(-1, 0);
    Event event;
    std::optional<Error> failure;
    try {
        const Abortable abortable(shared_, {&sequence});
        event = sequence.pooled(sequence.task() == Task::rank ? model_->pooler().rank(sequence.prompt())
                                                              : model_->pooler().embed(sequence.prompt()));
    } catch (const Error & e) {
        event = sequence.failed(e.code, e.what());
        event.details = e.details;
        failure = e;
    }
    note_memory();
    {
        const std::lock_guard lock(shared_.mutex);
        ++shared_.stats.n_steps;
        if (shared_.closing && event.code == "cancelled") {
            const Error reason = engine_closed();
            event.code = reason.code;
            event.text = reason.what();
        }
    }
    publish(std::move(event));
    if (failure && failure->code == "device_lost") {
        throw *failure;   // it concerns all
    }
}

void Loop::remove_ended() {
    running_.erase(std::remove_if(running_.begin(), running_.end(),
                                  [&](const SequencePtr & sequence) {
                                      if (sequence->ended() && sequence->slot >= 0) {
                                          cache_->release(sequence->slot);
                                      }
                                      return sequence->ended();
                                  }),
                   running_.end());
}

void Loop::end_all(const std::string & code, const std::string & message) {
    for (const SequencePtr & sequence : running_) {
        if (!sequence->ended()) {
            publish(sequence->failed(code, message));
        }
    }
    for (const SequencePtr & sequence : waiting_) {
        publish(sequence->failed(code, message));
    }
    running_.clear();
    waiting_.clear();
}

void Loop::publish(Event event) {
    if (event.kind == EventKind::text && event.text.empty() && event.mark.empty() && event.logprobs.empty() &&
        event.tokens.empty() && event.usage.n_generated != 1) {
        return;  // all of it is held back; the first token is told anyway, for its time
    }
    events_.push_back(std::move(event));
}

void Loop::flush() {
    count();
    deliver(std::exchange(events_, {}), shared_.loading, shared_.bell);
}

void Loop::count() {
    const std::lock_guard lock(shared_.mutex);
    for (const Event & event : events_) {
        const bool finished = event.kind == EventKind::finished || event.kind == EventKind::embedding;
        if (event.id != 0 && is_last(event)) {
            --shared_.n_live;
            ++(finished                    ? shared_.stats.n_finished
               : event.code == "cancelled" ? shared_.stats.n_cancelled
                                           : shared_.stats.n_failed);
            shared_.stats.n_prompt_tokens += static_cast<uint64_t>(event.usage.n_prompt);
            shared_.stats.n_cached_tokens += static_cast<uint64_t>(event.usage.n_cached);
            add_generated(of_ended_, event.usage);
            add_seconds(shared_.stats, event.timings);
        }
    }
    Stats generated = of_ended_;
    for (const SequencePtr & sequence : running_) {
        if (!sequence->ended()) {
            add_generated(generated, sequence->usage());
        }
    }
    shared_.stats.n_generated_tokens = generated.n_generated_tokens;
    shared_.stats.n_accepted_tokens = generated.n_accepted_tokens;
    shared_.stats.n_rejected_tokens = generated.n_rejected_tokens;
    shared_.stats.n_running = static_cast<int32_t>(running_.size());
    shared_.stats.n_waiting = static_cast<int32_t>(waiting_.size());
    if (cache_) {
        shared_.stats.n_cells_used = cache_->n_tokens();
        shared_.stats.prefix_cache_bytes = cache_->host_bytes();
    }
}

void Loop::idle_check() {
    checked_ = true;
    if (!cache_->check() || !cache_->used_slots().empty()) {
        log::write(log::error, "the prefix cache's index contradicts itself; it was emptied");
        cache_->forget_all();
    }
}

}  // namespace pgl
