// Engine: owns a model and ONE thread that does all its work. Its verbs may be called from any thread.
#pragma once

#include "engine/outbox.h"
#include "llama/log.h"
#include "platform/machine.h"
#include "request.h"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_set>
#include <vector>

namespace pgl {

class KvCache;
class Model;
class Scheduler;
class Sequence;
struct Batch;
struct Plan;

// inbox -> (admit, plan, decode, sample) -> outbox, over and over. Every verb first checks that it runs in the process
// that made the engine: Error("forked_engine"). After close(): Error("engine_closed").
class Engine {
  public:
    // Returns at once; the engine's thread loads the model. loading() then holds `progress` events with id 0 and one
    // `loaded` or `error`.
    Engine(std::string path, EngineOptions options);
    ~Engine();

    // Deletes an engine, unless this process inherited it through fork(): then it stays where it is.
    struct Release {
        void operator()(Engine * engine) const;
    };

    // Tokenizes while the caller waits, and queues. Throws Error: queue_full, context_length_exceeded, invalid_request
    // (also a task that the model cannot do), invalid_model (not loaded), interrupted (`poll` said so).
    RequestId submit(Request request, const machine::Poll & poll = nullptr);

    // The request ends with an `error` event, code "cancelled", unless it has ended. id 0 stops the load.
    // Takes effect after the step under way; that step is aborted when nobody else waits for it.
    void cancel(RequestId id);

    // For the events of one call's requests; closed when the engine ends. `rings`: its reader does not wait in it, but
    // is told by whoever listens to the bell. `quiet`: as Outbox::make.
    std::shared_ptr<Outbox> outbox(bool quiet, bool rings);

    // The events of the load.
    std::shared_ptr<Outbox> loading() const { return loading_; }

    // As Bell::listen(): which of the outboxes that ring have news.
    std::vector<OutboxId> listen(int32_t timeout_ms);

    std::vector<Token> tokenize(std::vector<Span> spans, bool add_bos, const machine::Poll & poll = nullptr) const;
    ModelInfo info() const;
    Stats stats() const;

    // What llama.cpp said while it worked for this engine, since the last call: (log::Level, bytes). Never fails.
    std::vector<std::pair<int, std::string>> drain_log() const { return log_->drain(); }

    // Ends every request with an `error` event, code "engine_closed", frees everything, joins. Idempotent.
    void close();

  private:
    using SequencePtr = std::unique_ptr<Sequence>;

    void run();
    bool load();
    bool step();
    void take_inbox(std::vector<SequencePtr> & arrived, std::unordered_set<RequestId> & cancelled, bool & closing);
    void drop_cancelled(const std::unordered_set<RequestId> & cancelled);
    void admit();
    void decode(const Plan & plan);
    void prefill(const Plan & plan);
    void pool(Sequence & sequence);
    bool compute(const Batch & batch, const std::vector<Sequence *> & participants);
    void sample(Sequence & sequence, float * logits);
    void end_all(const std::string & code, const std::string & message);
    void remove_ended();
    void publish(Event event);
    void flush();
    void count();
    void idle_check();
    std::shared_ptr<Model> loaded_model() const;
    Sequence * in_slot(int32_t slot) const;

    const std::string path_;
    const EngineOptions options_;
    const int64_t process_id_;
    const std::shared_ptr<log::Queue> log_;

    // Shared; under mutex_.
    mutable std::mutex mutex_;
    std::condition_variable wake_engine_;
    std::shared_ptr<Model> model_;                // shared, so that a tokenize outlives a close beside it
    std::vector<SequencePtr> inbox_;
    std::unordered_set<RequestId> cancelled_;     // asked for, not yet acted on
    std::unordered_set<RequestId> computing_;     // requests that wait for the decode under way
    Stats stats_;
    RequestId last_id_ = 0;
    int32_t n_live_ = 0;                          // submitted, no last event yet
    bool closing_ = false, ended_ = false;

    std::vector<std::weak_ptr<Outbox>> outboxes_;  // to be closed with the engine
    OutboxId last_outbox_ = 0;

    std::atomic<bool> abort_{false};  // polled inside a decode
    const std::shared_ptr<Outbox> loading_;
    Bell bell_;

    // The engine thread's own.
    std::unique_ptr<KvCache> cache_;
    std::unique_ptr<Scheduler> scheduler_;
    std::deque<SequencePtr> waiting_;
    std::vector<SequencePtr> running_;
    std::vector<Event> events_;
    uint64_t n_generated_by_ended_ = 0;
    bool checked_ = true;

    std::mutex close_mutex_;
    std::thread thread_;
};

}  // namespace pgl
