#include "worker/remote_engine.h"

#include "platform/process.h"

#include <algorithm>
#include <chrono>
#include <system_error>
#include <utility>

namespace pgl {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr size_t kMostReason = 2048;      // bytes of it, the last ones
constexpr auto kSlice = milliseconds(50);   // between two looks at whether the caller wants to leave
// Statistics are asked for by event loops too, which an engine that does not answer must not stop.
constexpr int32_t kStatsWaitMs = 200;
constexpr int32_t kEndWaitMs = 5000;

// Without folders: a failed assertion names the file of the machine that compiled it.
std::string without_folders(const std::string & text) {
    std::string out;
    size_t word = 0;
    for (size_t i = 0; i <= text.size(); ++i) {
        if (i < text.size() && text[i] != ' ' && text[i] != '\n' && text[i] != '(') {
            continue;
        }
        const std::string piece = text.substr(word, i - word);
        const bool path = piece.size() > 1 && (piece[0] == '/' || piece.compare(1, 2, ":\\") == 0);
        out += path ? piece.substr(piece.find_last_of("/\\") + 1) : piece;
        out += i < text.size() ? std::string(1, text[i] == '\n' ? ' ' : text[i]) : "";
        word = i + 1;
    }
    while (!out.empty() && out.back() == ' ') {
        out.pop_back();
    }
    return out;
}

}  // namespace

RemoteEngine::RemoteEngine(std::string path, EngineOptions options, WorkerProcess worker) : RemoteEngine(worker) {
    const Opening first = opening(std::move(path), std::move(options));
    channel_.send(message(Verb::open, 0, first));  // where it fails, the reader finds out why
}

RemoteEngine::RemoteEngine(WorkerProcess worker)
    : process_id_(machine::process_id()), worker_(worker), channel_(worker.out, worker.in) {
    try {
        reasons_ = std::thread([this] { read_reason(); });
        messages_ = std::thread([this] { read_messages(); });
        watcher_ = std::thread([this] { watch(); });
    } catch (const std::system_error &) {
        close();
        throw Error("out_of_memory",
                    "no thread could be started; this process's limits on threads or memory are reached");
    }
}

MemoryEstimate RemoteEngine::estimate(std::string path, EngineOptions options, WorkerProcess worker) {
    RemoteEngine engine(worker);
    const Opening first = engine.opening(std::move(path), std::move(options));
    const std::string reply = engine.call(nullptr, Verb::estimate, first);
    return wire::Unpacker(reply).get<MemoryEstimate>();
}

Opening RemoteEngine::opening(std::string path, EngineOptions options) const {
    return {wire_build(), std::move(path), std::move(options), worker_.hang_ms, worker_.most_memory_bytes};
}

RemoteEngine::~RemoteEngine() {
    close();
    platform::close_fd(worker_.reason);
}

void RemoteEngine::Release::operator()(RemoteEngine * engine) const {
    if (engine->process_id_ == machine::process_id()) {   // as of Engine
        delete engine;
    }
}

Error RemoteEngine::why_ended() const {
    return failure_ && !closing_ ? *failure_ : engine_closed();
}

void RemoteEngine::close() {
    check_process(process_id_);
    bool running = false;
    {
        const std::lock_guard lock(mutex_);
        closing_ = true;
        running = !ended_ && messages_.joinable();
    }
    const std::lock_guard once(close_mutex_);
    if (running) {
        channel_.send(message(Verb::close, 0));
        std::unique_lock lock(mutex_);
        if (!changed_.wait_for(lock, milliseconds(worker_.close_ms), [this] { return ended_; })) {
            platform::kill(worker_.process);
        }
    } else if (!messages_.joinable()) {
        platform::kill(worker_.process);
    }
    changed_.notify_all();
    for (std::thread * thread : {&messages_, &watcher_, &reasons_}) {
        if (thread->joinable()) {
            thread->join();
        }
    }
}

CallId RemoteEngine::begin_call() {
    const std::lock_guard lock(mutex_);
    if (closing_ || ended_) {
        throw why_ended();
    }
    calls_.emplace(++last_call_, Call{});
    return last_call_;
}

// Until its reply is there; throws the Error it carries. `timeout_ms` < 0: for ever. A caller who leaves is forgotten;
// a request that he was about to make is then cancelled.
std::string RemoteEngine::wait_for_reply(CallId id, const machine::Poll & poll, int32_t timeout_ms, RequestId request) {
    const auto deadline = steady_clock::now() + milliseconds(timeout_ms);
    std::unique_lock lock(mutex_);
    Call & call = calls_[id];
    for (;;) {
        const auto slice = timeout_ms < 0 ? kSlice : std::min(kSlice, milliseconds(timeout_ms));
        changed_.wait_for(lock, slice, [&] { return call.done || ended_; });
        if (call.done) {
            break;
        }
        if (ended_) {
            calls_.erase(id);
            throw why_ended();
        }
        if (timeout_ms >= 0 && steady_clock::now() >= deadline) {
            calls_.erase(id);
            throw Error("timeout", "the engine did not answer in time");
        }
        if (poll) {
            lock.unlock();
            const bool leave = poll();
            lock.lock();
            if (leave) {
                if (request != 0 && !call.done) {
                    call.abandoned = request;
                } else {
                    calls_.erase(id);
                }
                throw Error("interrupted", "the caller left");
            }
        }
    }
    std::string reply = std::move(call.reply);
    calls_.erase(id);
    lock.unlock();
    wire::Unpacker unpacker(reply);
    if (!unpacker.get<bool>()) {
        throw unpack_error(unpacker);
    }
    return reply.substr(1);
}

template <typename... Parts>
std::string RemoteEngine::call(const machine::Poll & poll, Verb verb, const Parts &... parts) {
    check_process(process_id_);
    const CallId id = begin_call();
    channel_.send(message(verb, id, parts...));
    return wait_for_reply(id, poll, -1, 0);
}

RequestId RemoteEngine::submit(Request request, const machine::Poll & poll) {
    if (request.logits_processor) {
        throw Error("invalid_request",
                    "logits_processor: the model runs in a process of its own, which cannot call this one's functions;"
                    " load it with isolation='thread'",
                    {{"field", "logits_processor"}});
    }
    check_process(process_id_);
    if (!request.outbox) {
        throw Error("invalid_request", "a request needs an outbox for its events");
    }
    const CallId call = begin_call();
    RequestId id = 0;
    {
        const std::lock_guard lock(mutex_);
        id = ++last_id_;
        readers_[id] = std::move(request.outbox);
    }
    try {
        channel_.send(message(Verb::submit, call, id, request));
        wait_for_reply(call, poll, -1, id);
    } catch (...) {
        const std::lock_guard lock(mutex_);
        readers_.erase(id);
        throw;
    }
    return id;
}

void RemoteEngine::cancel(RequestId id) {
    check_process(process_id_);
    {
        const std::lock_guard lock(mutex_);
        if (ended_) {
            return;
        }
    }
    channel_.send(message(Verb::cancel, 0, id));
}

std::shared_ptr<Outbox> RemoteEngine::outbox(bool quiet, bool rings) {
    check_process(process_id_);
    return outboxes_.make(quiet, rings);
}

std::vector<OutboxId> RemoteEngine::listen(int32_t timeout_ms) {
    check_process(process_id_);
    try {
        return bell_.listen(timeout_ms);
    } catch (const Error &) {   // closed
        const std::lock_guard lock(mutex_);
        throw why_ended();
    }
}

void RemoteEngine::compile(const Constraint & constraint) {
    call(nullptr, Verb::compile, constraint);
}

std::vector<Token> RemoteEngine::tokenize(std::vector<Span> spans, bool add_bos, const machine::Poll & poll) {
    const std::string reply = call(poll, Verb::tokenize, spans, add_bos);
    return wire::Unpacker(reply).get<std::vector<Token>>();
}

std::string RemoteEngine::detokenize(const std::vector<Token> & tokens, bool special) {
    const std::string reply = call(nullptr, Verb::detokenize, tokens, special);
    return wire::Unpacker(reply).get<std::string>();
}

ModelInfo RemoteEngine::info() {
    const std::string reply = call(nullptr, Verb::info);
    return wire::Unpacker(reply).get<ModelInfo>();
}

Stats RemoteEngine::stats() {
    check_process(process_id_);
    try {
        const CallId id = begin_call();
        channel_.send(message(Verb::stats, id));
        const std::string reply = wait_for_reply(id, nullptr, kStatsWaitMs, 0);
        const auto stats = wire::Unpacker(reply).get<Stats>();
        const std::lock_guard lock(mutex_);
        return stats_ = stats;
    } catch (const Error &) {   // ended, or it does not answer
        const std::lock_guard lock(mutex_);
        return stats_;
    }
}

bool RemoteEngine::crashed() const {
    const std::lock_guard lock(mutex_);
    return ended_ && !closing_ && failure_ && failure_->code == "engine_crashed";
}

void RemoteEngine::read_messages() {
    std::string message;
    while (channel_.receive(message)) {
        try {
            take(message);
        } catch (const Error & e) {   // whatever sends such things is not our worker any more
            platform::kill(worker_.process);
            const std::lock_guard lock(mutex_);
            failure_ = Error("engine_crashed", std::string("the engine's process was ended: ") + e.what());
            break;
        }
    }
    end();
}

void RemoteEngine::take(const std::string & message) {
    wire::Unpacker unpacker(message);
    const auto verb = unpacker.get<Verb>();
    const auto id = unpacker.get<CallId>();
    if (verb == Verb::events) {
        pass_on(unpacker.get<std::vector<Event>>());
    } else if (verb == Verb::log) {
        for (auto & [level, line] : unpacker.get<std::vector<std::pair<int, std::string>>>()) {
            log_.push(level, std::move(line));
        }
    }
    RequestId to_cancel = 0;
    {
        const std::lock_guard lock(mutex_);
        heard_ = true;
        if (verb == Verb::beat) {
            stats_ = unpacker.get<Stats>();
        } else if (verb == Verb::ended) {
            Error why = unpack_error(unpacker);
            said_why_ = true;
            if (why.code != "engine_closed") {
                failure_ = std::move(why);
            }
        } else if (const auto call = calls_.find(id); verb == Verb::reply && call != calls_.end()) {
            if (call->second.abandoned != 0) {
                to_cancel = call->second.abandoned;
                calls_.erase(call);
            } else {
                call->second.done = true;
                call->second.reply = message.substr(sizeof(Verb) + sizeof(CallId));
            }
        }
    }
    if (to_cancel != 0) {
        cancel(to_cancel);
    }
    if (verb == Verb::reply) {
        changed_.notify_all();
    }
}

// Gives each event the outbox of its request. One whose reader gave up before is dropped.
void RemoteEngine::pass_on(std::vector<Event> events) {
    std::vector<Event> wanted;
    {
        const std::lock_guard lock(mutex_);
        for (Event & event : events) {
            loaded_ = loaded_ || event.kind == EventKind::loaded;
            if (event.id != 0) {
                const auto reader = readers_.find(event.id);
                if (reader == readers_.end()) {
                    continue;
                }
                event.outbox = reader->second;
                if (is_last(event)) {
                    readers_.erase(reader);
                }
            }
            wanted.push_back(std::move(event));
        }
    }
    deliver(std::move(wanted), loading_, bell_);
}

void RemoteEngine::read_reason() {
    char bytes[512];
    try {
        while (const size_t n = platform::read_some(worker_.reason, bytes, sizeof bytes)) {
            const std::lock_guard lock(mutex_);
            reason_.append(bytes, n);
            if (reason_.size() > kMostReason) {
                reason_.erase(0, reason_.size() - kMostReason);
            }
        }
    } catch (const std::system_error &) {
        return;   // there is no more to learn
    }
}

// Ends a worker that says nothing any more. A machine that sleeps stops this thread as well.
void RemoteEngine::watch() {
    const auto beat = milliseconds(1000);
    milliseconds silence{0};
    std::unique_lock lock(mutex_);
    while (!ended_) {
        if (changed_.wait_for(lock, beat, [this] { return ended_; })) {
            return;
        }
        silence = heard_ ? milliseconds(0) : silence + beat;
        heard_ = false;
        if (worker_.silence_ms > 0 && silence.count() >= worker_.silence_ms) {
            silent_ = true;
            platform::kill(worker_.process);
            return;
        }
    }
}

// The worker is gone, or about to go.
void RemoteEngine::end() {
    platform::Ending ending = platform::ending_of(worker_.process, kEndWaitMs);
    if (!ending.ended) {
        platform::kill(worker_.process);
        ending = platform::ending_of(worker_.process, kEndWaitMs);
    }
    if (reasons_.joinable() && ending.ended) {
        reasons_.join();
    }
    std::vector<Event> last;
    {
        const std::lock_guard lock(mutex_);
        if (!failure_ && !said_why_) {
            std::string why = "the engine's process " + ending.in_words;
            std::map<std::string, std::string> details;
            if (silent_) {
                why = "the engine's process was ended, for it had said nothing for " +
                      std::to_string(worker_.silence_ms / 1000) + " seconds";
            } else if (const std::string reason = without_folders(reason_); !reason.empty()) {
                why += ": " + reason;
                details["reason"] = reason;
            } else if (ending.signal == 9) {
                why += ": by hand, or by a system that ran out of memory";
            }
            if (ending.signal != 0) {
                details["signal"] = std::to_string(ending.signal);
            }
            failure_ = Error("engine_crashed", why, details);
        }
        const Error why = why_ended();
        Event event;
        event.kind = EventKind::error;
        event.code = why.code;
        event.text = why.code == "engine_closed" ? "the engine was closed while this request ran" : why.what();
        event.details = why.details;
        stats_.n_failed += readers_.size();
        if (!loaded_) {
            last.push_back(event);
        }
        for (auto & [id, outbox] : std::exchange(readers_, {})) {
            event.id = id;
            event.outbox = outbox;
            last.push_back(event);
        }
        stats_.n_running = stats_.n_waiting = 0;
        stats_.device_bytes.clear();
        ended_ = true;   // before any reader learns of it, so that the next request finds the engine ended
    }
    deliver(std::move(last), loading_, bell_);
    changed_.notify_all();
    outboxes_.close_all();
    loading_->close();
    bell_.close();
}

}  // namespace pgl
