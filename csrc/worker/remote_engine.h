// RemoteEngine: an engine in a process of its own, with the verbs of Engine.
#pragma once

#include "engine/outbox.h"
#include "llama/log.h"
#include "platform/machine.h"
#include "platform/pipe.h"
#include "request.h"
#include "worker/messages.h"

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

namespace pgl {

// A worker that was started, and what it may take.
struct WorkerProcess {
    int64_t process = 0;                     // its id; on Windows its handle
    int32_t in = -1, out = -1, reason = -1;  // our ends of its standard input, output and error, closed with the engine
    int32_t hang_ms = 0;  // a computation in which nothing is finished for so long; 0 = for ever
    int32_t silence_ms = 0;  // without a word of the worker; 0 = for ever
    int32_t close_ms = 0;  // until its end, once close() was called
    uint64_t most_memory_bytes = 0;  // private memory; 0 = no limit

    template <typename Visit> static constexpr void fields(Visit && field) {
        field("process", &WorkerProcess::process);
        field("in", &WorkerProcess::in);
        field("out", &WorkerProcess::out);
        field("reason", &WorkerProcess::reason);
        field("hang_ms", &WorkerProcess::hang_ms);
        field("silence_ms", &WorkerProcess::silence_ms);
        field("close_ms", &WorkerProcess::close_ms);
        field("most_memory_bytes", &WorkerProcess::most_memory_bytes);
    }
};

// As Engine's verbs, each of which may be called from any thread. When the worker dies, every running request ends with
// an `error` event, code "engine_crashed", whose text says what is known of why; later verbs throw the same, but for
// stats(), which stay what they were.
class RemoteEngine {
  public:
    // What a model would take, found by a worker that does nothing else: a file that ends it ends nobody else. Throws
    // Error as estimate_memory() does, and "engine_crashed".
    static MemoryEstimate estimate(std::string path, EngineOptions options, WorkerProcess worker);

    // The worker loads the model, as Engine's own thread does.
    RemoteEngine(std::string path, EngineOptions options, WorkerProcess worker);
    ~RemoteEngine();

    struct Release {
        void operator()(RemoteEngine * engine) const;
    };

    RequestId submit(Request request, const machine::Poll & poll = nullptr);
    void cancel(RequestId id);
    std::shared_ptr<Outbox> outbox(bool quiet, bool rings);
    std::shared_ptr<Outbox> loading() const { return loading_; }
    std::vector<OutboxId> listen(int32_t timeout_ms);
    void compile(const Constraint & constraint);
    std::vector<Token> tokenize(std::vector<Span> spans, bool add_bos, const machine::Poll & poll = nullptr);
    std::string detokenize(const std::vector<Token> & tokens, bool special);
    ModelInfo info();
    Stats stats();
    std::vector<std::pair<int, std::string>> drain_log() { return log_.drain(); }

    // The worker has ended, and nobody asked it to.
    bool crashed() const;

    // Ends the worker too, by force when it does not end by itself.
    void close();

  private:
    explicit RemoteEngine(WorkerProcess worker);

    // One that waits for its reply.
    struct Call {
        bool done = false;
        std::string reply;  // what follows the call's number
        RequestId abandoned = 0;  // nobody waits any more for this request to be accepted
    };

    template <typename... Parts> std::string call(const machine::Poll & poll, Verb verb, const Parts &... parts);
    std::string wait_for_reply(CallId id, const machine::Poll & poll, int32_t timeout_ms, RequestId request);
    CallId begin_call();

    Opening opening(std::string path, EngineOptions options) const;
    void read_messages();
    void read_reason();
    void watch();
    void take(const std::string & message);
    void pass_on(std::vector<Event> events);
    void end();
    Error why_ended() const;  // under the mutex

    const int64_t process_id_;  // of this process
    const WorkerProcess worker_;
    platform::Channel channel_;
    const std::shared_ptr<Outbox> loading_ = Outbox::make();
    Outboxes outboxes_;
    Bell bell_;
    log::Queue log_;

    mutable std::mutex mutex_;
    std::condition_variable changed_;
    std::unordered_map<RequestId, std::shared_ptr<Outbox>> readers_;  // of requests whose last event has not come
    std::unordered_map<CallId, Call> calls_;
    CallId last_call_ = 0;
    RequestId last_id_ = 0;
    Stats stats_;  // the latest that came
    bool closing_ = false, ended_ = false, loaded_ = false;
    bool heard_ = false;  // anything, since the watcher last looked
    bool silent_ = false;  // it was ended for that
    bool said_why_ = false;  // it told that it was about to end
    std::string reason_;  // the last of what the worker wrote to its standard error
    std::optional<Error> failure_;  // why it ended, if it was not closed
    std::mutex close_mutex_;
    std::thread messages_, reasons_, watcher_;
};

}  // namespace pgl
