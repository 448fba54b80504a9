#include "engine/outbox.h"

#include "platform/machine.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <map>

namespace pgl {
namespace {

constexpr size_t kMaxPending = 256;

void append(Event & gathered, Event event) {
    gathered.text += event.text;
    gathered.mark = std::move(event.mark);
    gathered.usage = event.usage;
    gathered.timings = event.timings;
    std::move(event.logprobs.begin(), event.logprobs.end(), std::back_inserter(gathered.logprobs));
}

}  // namespace

void check_process(int64_t process_id) {
    if (machine::process_id() != process_id) {
        throw Error("forked_engine", "this engine belongs to process " + std::to_string(process_id) +
                                         "; open another one in the forked process");
    }
}

bool is_last(const Event & event) {
    return event.kind == EventKind::finished || event.kind == EventKind::embedding || event.kind == EventKind::error;
}

Outbox::Outbox(bool quiet, OutboxId id, Sink sink)
    : quiet_(quiet), id_(id), process_id_(machine::process_id()), sink_(std::move(sink)) {}

std::shared_ptr<Outbox> Outbox::make_forwarding(Sink sink) {
    return std::shared_ptr<Outbox>(new Outbox(false, 0, std::move(sink)));
}

std::shared_ptr<Outbox> Outbox::make(bool quiet, OutboxId id) {
    // A forked child may hold one that a thread of its parent waited on: a condition variable's destructor would wait
    // too.
    return {new Outbox(quiet, id), [](Outbox * outbox) {
                if (outbox->process_id_ == machine::process_id()) {
                    delete outbox;
                }
            }};
}

bool Outbox::push(std::vector<Event> events) {
    if (sink_) {
        sink_(std::move(events));
        return false;
    }
    std::unique_lock lock(mutex_);
    const bool told = ready_;
    for (Event & event : events) {
        ready_ = ready_ || !quiet_ || is_last(event);
        const bool text = event.kind == EventKind::text;
        if (const auto last = last_text_.find(event.id); last != last_text_.end() && text) {
            append(events_[last->second], std::move(event));
            if (!events_[last->second].mark.empty()) {
                last_text_.erase(last);  // what comes later comes after the mark
            }
            continue;
        }
        if (events_.size() >= kMaxPending) {
            if (text && event.mark.empty()) {
                last_text_[event.id] = events_.size();
            } else {
                last_text_.erase(event.id);
            }
        }
        events_.push_back(std::move(event));
    }
    const bool ready = ready_;
    lock.unlock();
    if (ready) {
        changed_.notify_all();
    }
    return ready && !told;
}

void Outbox::check_process() const {
    if (machine::process_id() != process_id_) {
        throw Error("forked_engine", "this stream belongs to process " + std::to_string(process_id_));
    }
}

std::vector<Event> Outbox::wait(int32_t timeout_ms) {
    check_process();
    std::unique_lock lock(mutex_);
    return take(changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms), [this] { return ready_ || closed_; }));
}

std::vector<Event> Outbox::drain() {
    check_process();
    const std::lock_guard lock(mutex_);
    return take(ready_ || closed_);
}

// Under the lock. `told`: there is something for this reader to know.
std::vector<Event> Outbox::take(bool told) {
    if (closed_ && events_.empty()) {
        throw engine_closed();
    }
    if (!told) {
        return {};
    }
    ready_ = false;
    last_text_.clear();
    return std::exchange(events_, {});
}

void Outbox::wake() {
    const std::lock_guard lock(mutex_);
    ready_ = true;
    changed_.notify_all();
}

void Outbox::close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    changed_.notify_all();
}

std::shared_ptr<Outbox> Outboxes::make(bool quiet, bool rings) {
    std::shared_ptr<Outbox> outbox;
    {
        const std::lock_guard lock(mutex_);
        outbox = Outbox::make(quiet, rings ? ++last_id_ : 0);
    }
    add(outbox);
    return outbox;
}

void Outboxes::add(const std::shared_ptr<Outbox> & outbox) {
    const std::lock_guard lock(mutex_);
    if (closed_) {
        outbox->close();
        return;
    }
    const auto gone = [](const std::weak_ptr<Outbox> & other) { return other.expired(); };
    all_.erase(std::remove_if(all_.begin(), all_.end(), gone), all_.end());
    all_.push_back(outbox);
}

void Outboxes::close_all() {
    std::vector<std::weak_ptr<Outbox>> all;
    {
        const std::lock_guard lock(mutex_);
        closed_ = true;
        all = std::move(all_);
    }
    for (const std::weak_ptr<Outbox> & left : all) {
        if (const std::shared_ptr<Outbox> outbox = left.lock()) {
            outbox->close();
        }
    }
}

void Bell::ring(const std::vector<OutboxId> & outboxes) {
    {
        const std::lock_guard lock(mutex_);
        outboxes_.insert(outboxes_.end(), outboxes.begin(), outboxes.end());
    }
    rung_.notify_one();
}

std::vector<OutboxId> Bell::listen(int32_t timeout_ms) {
    std::unique_lock lock(mutex_);
    rung_.wait_for(lock, std::chrono::milliseconds(timeout_ms), [this] { return !outboxes_.empty() || closed_; });
    if (closed_ && outboxes_.empty()) {
        throw engine_closed();
    }
    return std::exchange(outboxes_, {});
}

void Bell::close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    rung_.notify_all();
}

void deliver(std::vector<Event> events, const std::shared_ptr<Outbox> & loading, Bell & bell) {
    std::map<std::shared_ptr<Outbox>, std::vector<Event>> mail;
    for (Event & event : events) {
        // An outbox must not hold events that hold the outbox: it would never be freed.
        std::shared_ptr<Outbox> outbox = std::move(event.outbox);
        mail[event.id == 0 ? loading : outbox].push_back(std::move(event));
    }
    std::vector<OutboxId> rung;
    for (auto & [outbox, letters] : mail) {
        if (outbox->push(std::move(letters)) && outbox->id() != 0) {
            rung.push_back(outbox->id());
        }
    }
    if (!rung.empty()) {
        bell.ring(rung);
    }
}

}  // namespace pgl
