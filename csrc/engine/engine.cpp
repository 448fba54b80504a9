#include "engine/engine.h"

#include "engine/kv_cache.h"
#include "engine/outbox.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"
#include "llama/log.h"
#include "llama/model.h"
#include "platform/machine.h"
#include "ranges.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <system_error>
#include <utility>

namespace pgl {
namespace {

// deep graphs and templates of libstdc++ need more than musl's 128 KiB
constexpr uint64_t kEngineStack = uint64_t{16} << 20;

Error closed() {
    return Error("engine_closed", "the engine is closed");
}

void check_process(int64_t process_id) {
    if (machine::process_id() != process_id) {
        throw Error("forked_engine", "this engine belongs to process " + std::to_string(process_id) +
                                         "; open another one in the forked process");
    }
}

void check_sampling(const SamplingParams & params, int32_t n_vocab) {
    check_ranges(params);
    for (const auto & [token, bias] : params.logit_bias) {
        check_range("logit_bias token", token, {0, n_vocab - 1.0});
        if (std::isnan(bias)) {
            throw Error("invalid_request", "logit_bias must be a number, got nan",
                        {{"field", "logit_bias"}, {"allowed", "a number"}});
        }
    }
}

size_t n_bytes(const std::vector<Span> & spans) {
    size_t n = 0;
    for (const Span & span : spans) {
        n += span.text.size();
    }
    return n;
}

// Tokenizes on a stack that is large enough. The caller may leave before the end (`poll`); the work owns all it needs.
template <typename Work>  // Work(spans) -> tokens
std::vector<Token> on_large_stack(std::vector<Span> spans, const std::shared_ptr<log::Queue> & log,
                                  const machine::Poll & poll, Work work) {
    const uint64_t stack_bytes = Tokenizer::stack_bytes(n_bytes(spans));
    if (stack_bytes == 0) {
        const log::Scope scope(log);
        return work(spans);
    }
    const auto tokens = std::make_shared<std::vector<Token>>();
    machine::run_with_stack(
        stack_bytes,
        [tokens, log, work = std::move(work), spans = std::move(spans)] {
            const log::Scope scope(log);
            *tokens = work(spans);
        },
        poll);
    return std::move(*tokens);
}

std::vector<Token> tokens_for(Task task, const std::vector<Span> & spans, const Tokenizer & tokenizer) {
    if (task == Task::generate) {
        return tokenizer.tokenize(spans, true);
    }
    if (task == Task::embed) {
        std::string text;
        for (const Span & span : spans) {
            text += span.text;
        }
        return tokenizer.tokenize_document(text);
    }
    const bool filled_in = std::any_of(spans.begin(), spans.end(), [](const Span & span) { return span.trusted; });
    if (filled_in || spans.size() != 2) {
        return tokenizer.tokenize(spans, false);
    }
    return tokenizer.tokenize_pair(spans[0].text, spans[1].text);
}

std::string names_of(const std::vector<Task> & tasks) {
    std::string names;
    for (const Task task : tasks) {
        names += (names.empty() ? "" : ", ") + std::string(name_of(task));
    }
    return names.empty() ? "nothing" : names;
}

}  // namespace

Engine::Engine(std::string path, EngineOptions options)
    : path_(std::move(path)), options_(std::move(options)), process_id_(machine::process_id()),
      log_(std::make_shared<log::Queue>()), loading_(Outbox::make()) {
    const auto body = [this] {
        try {
            machine::run_with_stack(kEngineStack, [this] {
                const log::Scope scope(log_);
                run();
            });
        } catch (const std::exception & e) {  // no memory for the thread itself
            Event failure;
            failure.kind = EventKind::error;
            failure.code = "out_of_memory";
            failure.text = e.what();
            publish(std::move(failure));
            flush();
        }
        std::vector<std::weak_ptr<Outbox>> outboxes;
        {
            const std::lock_guard lock(mutex_);
            ended_ = true;
            outboxes = std::move(outboxes_);
        }
        for (const std::weak_ptr<Outbox> & left : outboxes) {
            if (const std::shared_ptr<Outbox> outbox = left.lock()) {
                outbox->close();
            }
        }
        loading_->close();
        bell_.close();
    };
    try {
        thread_ = std::thread(body);
    } catch (const std::system_error &) {
        throw Error("out_of_memory",
                    "no thread could be started; this process's limits on threads or memory are reached");
    }
}

Engine::~Engine() {
    close();
}

void Engine::Release::operator()(Engine * engine) const {
    // A forked child has the handles and not the threads: even a condition variable's destructor would wait for ever.
    if (engine->process_id_ == machine::process_id()) {
        delete engine;
    }
}

void Engine::close() {
    check_process(process_id_);
    {
        const std::lock_guard lock(mutex_);
        closing_ = true;
        abort_ = true;
    }
    wake_engine_.notify_all();
    const std::lock_guard once(close_mutex_);
    if (thread_.joinable()) {
        thread_.join();
    }
}

std::shared_ptr<Model> Engine::loaded_model() const {
    check_process(process_id_);
    const std::lock_guard lock(mutex_);
    if (closing_ || ended_) {
        throw closed();
    }
    if (!model_) {
        throw Error("invalid_model", "the model is not loaded yet");
    }
    return model_;
}

RequestId Engine::submit(Request request, const machine::Poll & poll) {
    const std::shared_ptr<Model> model = loaded_model();
    const ModelInfo & info = model->info();
    const Task task = request.task;
    const bool generate = task == Task::generate;
    if (!model->can(task)) {
        throw Error("invalid_request",
                    std::string("this model cannot ") + name_of(task) + "; it can " + names_of(info.tasks),
                    {{"field", "model"}, {"tasks", names_of(info.tasks)}});
    }
    check_sampling(request.sampling, info.n_vocab);
    if (!request.outbox) {
        throw Error("invalid_request", "a request needs an outbox for its events");
    }
    if (request.max_tokens < 1) {
        throw Error("invalid_request", "max_tokens must be at least 1, got " + std::to_string(request.max_tokens));
    }

    // A text that cannot fit is refused before it costs a tokenization: no token is longer than the longest piece.
    const int32_t n_ctx = generate ? info.n_ctx : model->max_pooled_tokens();
    const auto refuse = [&](int64_t n_prompt, const char * relation) {
        throw Error("context_length_exceeded",
                    "the prompt has " + std::string(relation) + std::to_string(n_prompt) + " tokens, and the " +
                        (generate ? "context" : "model's") + " length is " + std::to_string(n_ctx) +
                        (generate ? " with room for at least one token of answer" : ""),
                    {{"n_prompt", std::to_string(n_prompt)}, {"n_ctx", std::to_string(n_ctx)}});
    };
    const size_t least = n_bytes(request.prompt) / model->tokenizer().longest_piece();
    if (least > static_cast<size_t>(n_ctx)) {
        refuse(static_cast<int64_t>(least), "at least ");
    }
    std::vector<Token> prompt = std::move(request.tokens);
    for (const Token token : prompt) {
        if (token < 0 || token >= info.n_vocab) {
            throw Error("invalid_request",
                        "token id " + std::to_string(token) + " is not in 0.." + std::to_string(info.n_vocab - 1));
        }
    }
    if (prompt.empty()) {
        prompt = on_large_stack(std::move(request.prompt), log_, poll, [model, task](const std::vector<Span> & spans) {
            return tokens_for(task, spans, model->tokenizer());
        });
    }
    if (prompt.empty()) {
        throw Error("invalid_request", "the prompt is empty");
    }
    const auto n_prompt = static_cast<int32_t>(prompt.size());
    if (generate ? n_prompt >= n_ctx : n_prompt > n_ctx) {
        refuse(n_prompt, "");
    }
    request.prompt.clear();

    const std::lock_guard lock(mutex_);
    if (closing_ || ended_) {
        throw closed();
    }
    if (n_live_ >= options_.max_streams + options_.max_queue) {
        throw Error(
            "queue_full",
            "the queue is full: " + std::to_string(options_.max_streams) + " streams run and " +
                std::to_string(options_.max_queue) + " requests wait",
            {{"max_streams", std::to_string(options_.max_streams)}, {"max_queue", std::to_string(options_.max_queue)}});
    }
    const RequestId id = ++last_id_;
    inbox_.push_back(
        std::make_unique<Sequence>(id, std::move(request), std::move(prompt), n_ctx - n_prompt, info.n_vocab));
    ++n_live_;
    ++stats_.n_requests;
    wake_engine_.notify_one();
    return id;
}

void Engine::cancel(RequestId id) {
    check_process(process_id_);
    const std::lock_guard lock(mutex_);
    cancelled_.insert(id);
    if (computing_.erase(id) > 0 && computing_.empty()) {
        abort_ = true;
    }
    wake_engine_.notify_one();
}

std::shared_ptr<Outbox> Engine::outbox(bool quiet, bool rings) {
    check_process(process_id_);
    const std::lock_guard lock(mutex_);
    const std::shared_ptr<Outbox> outbox = Outbox::make(quiet, rings ? ++last_outbox_ : 0);
    if (ended_) {
        outbox->close();
        return outbox;
    }
    const auto gone = [](const std::weak_ptr<Outbox> & other) { return other.expired(); };
    outboxes_.erase(std::remove_if(outboxes_.begin(), outboxes_.end(), gone), outboxes_.end());
    outboxes_.push_back(outbox);
    return outbox;
}

std::vector<OutboxId> Engine::listen(int32_t timeout_ms) {
    check_process(process_id_);
    return bell_.listen(timeout_ms);
}

std::vector<Token> Engine::tokenize(std::vector<Span> spans, bool add_bos, const machine::Poll & poll) const {
    return on_large_stack(std::move(spans), log_, poll,
                          [model = loaded_model(), add_bos](const std::vector<Span> & text) {
                              return model->tokenizer().tokenize(text, add_bos);
                          });
}

ModelInfo Engine::info() const {
    return loaded_model()->info();
}

Stats Engine::stats() const {
    check_process(process_id_);
    const std::lock_guard lock(mutex_);
    return stats_;
}

// ---- the engine's thread ----

void Engine::run() {
    if (!load()) {
        return;
    }
    while (step()) {
    }
    running_.clear();
    waiting_.clear();
    cache_.reset();
    std::shared_ptr<Model> model;
    {
        const std::lock_guard lock(mutex_);
        model = std::move(model_);
    }
}

bool Engine::load() {
    Event failure;
    failure.kind = EventKind::error;
    try {
        float shown = -1;
        const auto on_progress = [&](float value) {
            if (value - shown >= 0.01f || value >= 1) {
                shown = value;
                Event event;
                event.kind = EventKind::progress;
                event.progress = value;
                publish(std::move(event));
                flush();
            }
            const std::lock_guard lock(mutex_);
            return !closing_ && cancelled_.count(0) == 0;
        };
        auto model = std::make_shared<Model>(path_, options_, on_progress, abort_);
        cache_ = std::make_unique<KvCache>(*model, options_.max_streams, model->info().prefix_cache_bytes);
        scheduler_ = std::make_unique<Scheduler>(options_.n_batch);
        {
            const std::lock_guard lock(mutex_);
            stats_.n_cells = model->can(Task::generate) ? model->info().n_ctx * options_.max_streams : 0;
            model_ = std::move(model);
        }
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

bool Engine::step() {
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
        admit();
        std::vector<Running> running;
        for (const SequencePtr & sequence : running_) {
            running.push_back({sequence->slot, sequence->n_remaining()});
        }
        const Plan plan = scheduler_->plan(running);
        decode(plan);
        flush();  // decoded tokens leave before the prompt chunk is computed
        prefill(plan);
        remove_ended();
    } catch (const Error & e) {
        // The model rebuilt its context: every running sequence's state is gone with it.
        for (const SequencePtr & sequence : running_) {
            if (!sequence->ended()) {
                publish(sequence->failed(e.code, e.what()));
            }
        }
        cache_->forget_all();
        running_.clear();
    } catch (const std::exception & e) {
        end_all("internal_error", e.what());
        cache_->forget_all();
    }
    flush();
    return true;
}

// Blocks while there is nothing to do.
void Engine::take_inbox(std::vector<SequencePtr> & arrived, std::unordered_set<RequestId> & cancelled, bool & closing) {
    std::unique_lock lock(mutex_);
    if (running_.empty() && waiting_.empty()) {
        if (inbox_.empty() && !closing_ && !checked_) {
            lock.unlock();
            idle_check();
            lock.lock();
        }
        wake_engine_.wait(lock, [this] { return !inbox_.empty() || closing_; });
    }
    arrived = std::exchange(inbox_, {});
    cancelled = std::exchange(cancelled_, {});
    closing = closing_;
}

void Engine::drop_cancelled(const std::unordered_set<RequestId> & cancelled) {
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

void Engine::admit() {
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
        const auto claim = cache_->claim((*next)->prompt());
        if (!claim) {
            return;
        }
        (*next)->admitted(claim->slot, claim->n_cached);
        checked_ = false;
        running_.push_back(std::move(*next));
        next = waiting_.erase(next);
    }
}

Sequence * Engine::in_slot(int32_t slot) const {
    for (const SequencePtr & sequence : running_) {
        if (sequence->slot == slot) {
            return sequence.get();
        }
    }
    return nullptr;
}

// Runs one batch for these sequences. False: all of them were cancelled, or the engine closes; nothing was committed.
bool Engine::compute(const Batch & batch, const std::vector<Sequence *> & participants) {
    {
        const std::lock_guard lock(mutex_);
        for (const Sequence * sequence : participants) {
            if (cancelled_.count(sequence->id()) == 0) {
                computing_.insert(sequence->id());
            }
        }
        if (computing_.empty() || closing_) {
            computing_.clear();
            return false;
        }
    }
    const auto finish = [this] {
        const std::lock_guard lock(mutex_);
        computing_.clear();
        abort_ = closing_;
        ++stats_.n_steps;
    };
    bool done = false;
    try {
        done = model_->decode(batch);
    } catch (...) {
        finish();
        throw;
    }
    finish();
    return done;
}

void Engine::decode(const Plan & plan) {
    if (plan.decode.empty()) {
        return;
    }
    const int32_t n_ctx = model_->info().n_ctx;
    std::vector<Sequence *> participants;
    std::vector<int32_t> fillers;
    Batch batch;
    for (const int32_t slot : plan.decode) {
        participants.push_back(in_slot(slot));
        batch.rows.push_back({participants.back()->next_token(), participants.back()->n_past, slot, true});
    }
    if (model_->can_trim()) {
        for (const int32_t slot : plan.fillers) {
            if (cache_->length(slot) < n_ctx) {
                fillers.push_back(slot);
                batch.rows.push_back({batch.rows.front().token, cache_->length(slot), slot, false});
            }
        }
        std::sort(batch.rows.begin(), batch.rows.end(),
                  [](const Batch::Row & a, const Batch::Row & b) { return a.sequence < b.sequence; });
    }
    const bool done = compute(batch, participants);
    for (const int32_t slot : fillers) {
        cache_->rollback(slot);
    }
    if (!done) {
        for (const int32_t slot : plan.decode) {
            cache_->rollback(slot);
        }
        return;
    }
    for (size_t row = 0; row < batch.rows.size(); ++row) {
        if (batch.rows[row].logits) {
            Sequence & sequence = *in_slot(batch.rows[row].sequence);
            cache_->append(sequence.slot, batch.rows[row].token);
            ++sequence.n_past;
            sample(sequence, model_->logits(static_cast<int32_t>(row)));
        }
    }
    remove_ended();
}

void Engine::prefill(const Plan & plan) {
    Sequence * sequence = plan.prefill < 0 ? nullptr : in_slot(plan.prefill);
    if (sequence == nullptr) {
        return;
    }
    Batch batch;
    for (int32_t i = 0; i < plan.n_prefill; ++i) {
        const int32_t position = sequence->n_past + i;
        const bool last = position == sequence->n_prompt() - 1;
        batch.rows.push_back({sequence->prompt()[static_cast<size_t>(position)], position, sequence->slot, last});
    }
    const auto start = Sequence::Clock::now();
    if (!compute(batch, {sequence})) {
        cache_->rollback(sequence->slot);
        return;
    }
    for (const Batch::Row & row : batch.rows) {
        cache_->append(sequence->slot, row.token);
    }
    sequence->n_past += plan.n_prefill;
    if (sequence->n_remaining() == 0) {
        float * logits = model_->logits(plan.n_prefill - 1);
        sequence->prefilled();
        sample(*sequence, logits);
    } else {
        publish(sequence->progress());
    }
    scheduler_->observe_prefill(plan.n_prefill,
                                std::chrono::duration<double, std::milli>(Sequence::Clock::now() - start).count());
}

void Engine::sample(Sequence & sequence, float * logits) {
    try {
        publish(sequence.sample(logits, model_->tokenizer()));
    } catch (const Error & e) {
        publish(sequence.failed(e.code, e.what()));
        cache_->discard(sequence.slot);
        sequence.slot = -1;
    }
}

void Engine::pool(Sequence & sequence) {
    {
        const std::lock_guard lock(mutex_);
        computing_.insert(sequence.id());
    }
    sequence.admitted(-1, 0);
    Event event;
    try {
        event = sequence.pooled(sequence.task() == Task::rank ? model_->rank(sequence.prompt())
                                                              : model_->embed(sequence.prompt()));
    } catch (const Error & e) {
        event = sequence.failed(e.code, e.what());
        event.details = e.details;
    }
    const std::lock_guard lock(mutex_);
    if (closing_ && event.code == "cancelled") {
        const Error reason = closed();
        event.code = reason.code;
        event.text = reason.what();
    }
    publish(std::move(event));
    computing_.clear();
    abort_ = closing_;
}

void Engine::remove_ended() {
    running_.erase(std::remove_if(running_.begin(), running_.end(),
                                  [&](const SequencePtr & sequence) {
                                      if (sequence->ended() && sequence->slot >= 0) {
                                          cache_->release(sequence->slot);
                                      }
                                      return sequence->ended();
                                  }),
                   running_.end());
}

void Engine::end_all(const std::string & code, const std::string & message) {
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

void Engine::publish(Event event) {
    if (event.kind == EventKind::text && event.text.empty() && event.logprobs.empty() && event.usage.n_generated != 1) {
        return;  // all of it is held back; the first token is told anyway, for its time
    }
    events_.push_back(std::move(event));
}

void Engine::flush() {
    count();
    std::map<std::shared_ptr<Outbox>, std::vector<Event>> mail;   // a reader is woken once per step
    for (Event & event : events_) {
        const std::shared_ptr<Outbox> outbox = event.id == 0 ? loading_ : std::move(event.outbox);
        mail[outbox].push_back(std::move(event));
    }
    events_.clear();
    std::vector<OutboxId> rung;
    for (auto & [outbox, events] : mail) {
        if (outbox->push(std::move(events)) && outbox->id() != 0) {
            rung.push_back(outbox->id());
        }
    }
    if (!rung.empty()) {
        bell_.ring(rung);
    }
}

void Engine::count() {
    const std::lock_guard lock(mutex_);
    for (const Event & event : events_) {
        const bool finished = event.kind == EventKind::finished || event.kind == EventKind::embedding;
        if (event.id != 0 && (finished || event.kind == EventKind::error)) {
            --n_live_;
            ++(finished ? stats_.n_finished : event.code == "cancelled" ? stats_.n_cancelled : stats_.n_failed);
            stats_.n_prompt_tokens += static_cast<uint64_t>(event.usage.n_prompt);
            stats_.n_cached_tokens += static_cast<uint64_t>(event.usage.n_cached);
            n_generated_by_ended_ += static_cast<uint64_t>(event.usage.n_generated);
        }
    }
    stats_.n_generated_tokens = n_generated_by_ended_;
    for (const SequencePtr & sequence : running_) {
        stats_.n_generated_tokens += sequence->ended() ? 0 : static_cast<uint64_t>(sequence->usage().n_generated);
    }
    stats_.n_running = static_cast<int32_t>(running_.size());
    stats_.n_waiting = static_cast<int32_t>(waiting_.size());
    if (cache_) {
        stats_.n_cells_used = cache_->n_tokens();
        stats_.prefix_cache_bytes = cache_->host_bytes();
    }
}

void Engine::idle_check() {
    checked_ = true;
    if (!cache_->check() || !cache_->used_slots().empty()) {
        log::write(log::error, "the prefix cache's book does not agree with itself; it was emptied");
        cache_->forget_all();
    }
}

}  // namespace pgl
