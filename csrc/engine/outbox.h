// Outbox: the events of one call, on their way from the engine's thread to the reader. Bell: which outboxes have news.
#pragma once

#include "request.h"

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace pgl {

inline Error engine_closed() {
    return Error("engine_closed", "the engine is closed");
}

// Throws Error("forked_engine") in any process but the one that made the engine.
void check_process(int64_t process_id);

// The last event of its request.
bool is_last(const Event & event);

// Of one reader at a time; everything else may come from any thread.
class Outbox {
  public:
    // `quiet`: the reader wants whole answers, and is told of last events only. `id`: its name on a bell; 0 = none, the
    // reader waits here itself.
    static std::shared_ptr<Outbox> make(bool quiet = false, OutboxId id = 0);

    // One whose events are handed on at once, in the thread that pushes them, and never lie here. `sink` does not
    // throw.
    using Sink = std::function<void(std::vector<Event>)>;
    static std::shared_ptr<Outbox> make_forwarding(Sink sink);

    OutboxId id() const { return id_; }

    // The text of one request, up to a mark, is gathered into one event while a slow reader leaves more than a few
    // hundred lying.
    // True when the reader was told of nothing before and has something to read now: time to ring.
    bool push(std::vector<Event> events);

    // Blocks until something is there, somebody calls wake(), or `timeout_ms` passed; oldest first. Once closed and
    // drained it throws Error("engine_closed"); in a forked child Error("forked_engine").
    std::vector<Event> wait(int32_t timeout_ms);

    // What wait(0) returns, without letting go of the processor.
    std::vector<Event> drain();

    void wake();
    void close();

  private:
    Outbox(bool quiet, OutboxId id, Sink sink = nullptr);
    void check_process() const;
    std::vector<Event> take(bool told);

    const bool quiet_;
    const OutboxId id_;
    const int64_t process_id_;
    const Sink sink_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<Event> events_;
    std::unordered_map<RequestId, size_t>
        last_text_;  // beyond the few hundred: where a request's last event lies, if text without a mark
    bool ready_ = false, closed_ = false;
};

// The outboxes of one engine, to be closed with it. Any thread.
class Outboxes {
  public:
    // As Outbox::make; `rings`: with a name of its own. Closed at once after close_all().
    std::shared_ptr<Outbox> make(bool quiet, bool rings);
    void add(const std::shared_ptr<Outbox> & outbox);
    void close_all();

  private:
    std::mutex mutex_;
    std::vector<std::weak_ptr<Outbox>> all_;
    OutboxId last_id_ = 0;
    bool closed_ = false;
};

// For the one thread that passes the word to readers that may not block: event loops.
class Bell {
  public:
    // Wakes the listener once, however many outboxes have news.
    void ring(const std::vector<OutboxId> & outboxes);

    // The outboxes that have news since the last call. Blocks until there is one, or `timeout_ms` passed. Once closed
    // and drained it throws Error("engine_closed").
    std::vector<OutboxId> listen(int32_t timeout_ms);

    void close();

  private:
    std::mutex mutex_;
    std::condition_variable rung_;
    std::vector<OutboxId> outboxes_;
    bool closed_ = false;
};

// Each event to its outbox, those of none (the load's, id 0) to `loading`. An outbox gets all of its own at once, so
// that a reader is woken once.
void deliver(std::vector<Event> events, const std::shared_ptr<Outbox> & loading, Bell & bell);

}  // namespace pgl
