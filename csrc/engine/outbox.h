// Outbox: events on their way from the engine's thread to whoever waits for them.
#pragma once

#include "request.h"

#include <condition_variable>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace pgl {

// Of one reader at a time; everything else may come from any thread.
class Outbox {
  public:
    // `quiet`: the reader wants whole answers, and is woken by last events only.
    static std::shared_ptr<Outbox> make(bool quiet = false);

    // The text of one request is gathered into one event while a slow reader leaves more than a few hundred lying.
    void push(std::vector<Event> events);

    // Blocks until something is there, somebody calls wake(), or `timeout_ms` passed; oldest first. Once closed and
    // drained it throws Error("engine_closed"); in a forked child Error("forked_engine").
    std::vector<Event> wait(int32_t timeout_ms);

    void wake();
    void close();

  private:
    explicit Outbox(bool quiet);

    const bool quiet_;
    const int64_t process_id_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<Event> events_;
    std::unordered_map<RequestId, size_t>
        last_text_;   // beyond the few hundred: where a request's last event lies, if a text
    bool ready_ = false, closed_ = false;
};

}  // namespace pgl
