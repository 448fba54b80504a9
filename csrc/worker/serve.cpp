#include "worker/serve.h"

#include "engine/engine.h"
#include "llama/devices.h"
#include "llama/last_words.h"
#include "llama/memory_estimate.h"
#include "platform/pipe.h"
#include "platform/process.h"
#include "worker/messages.h"
#include "worker/sandbox.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <memory>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

namespace pgl {
namespace {

using std::chrono::milliseconds;

constexpr auto kBeat = milliseconds(1000);
constexpr int kHung = 70, kMalformed = 71;   // exit statuses, beside the reason

class Server {
  public:
    Server(platform::Channel & channel, const Opening & opening)
        : channel_(channel), patience_(opening.patience_ms), engine_(opening.path, opening.options) {}

    void run() {
        std::thread([this] { watch(); }).detach();
        std::thread([this] {
            std::thread loading([this] { pass_on(*engine_.loading()); });
            pass_on(*outbox_);
            loading.join();
            const Error why = engine_.why_ended();
            channel_.send(message(Verb::ended, 0, why.code, std::string(why.what()), why.details));
            platform::leave(0);   // all that the engine said is sent
        }).detach();
        std::string message;
        while (channel_.receive(message)) {
            try {
                take(message);
            } catch (const Error & e) {
                last_words(e.what());
                platform::leave(kMalformed);
            }
        }
        platform::leave(0);   // nobody is left to work for
    }

  private:
    void take(const std::string & message) {
        wire::Unpacker unpacker(message);
        const auto verb = unpacker.get<Verb>();
        const auto call = unpacker.get<CallId>();
        switch (verb) {
        case Verb::submit: {
            const auto id = unpacker.get<RequestId>();
            auto request = unpacker.get<Request>();
            request.id = id;
            request.outbox = outbox_;
            answer_on_thread(call, [this, request = std::move(request)]() mutable {
                return wire::Packer().add(engine_.submit(std::move(request))).bytes();
            });
            break;
        }
        case Verb::compile:
            answer_on_thread(call, [this, constraint = unpacker.get<Constraint>()] {
                engine_.compile(constraint);
                return std::string();
            });
            break;
        case Verb::tokenize: {
            auto spans = unpacker.get<std::vector<Span>>();
            const bool add_bos = unpacker.get<bool>();
            answer_on_thread(call, [this, spans = std::move(spans), add_bos]() mutable {
                return wire::Packer().add(engine_.tokenize(std::move(spans), add_bos)).bytes();
            });
            break;
        }
        case Verb::detokenize: {
            auto tokens = unpacker.get<std::vector<Token>>();
            const bool special = unpacker.get<bool>();
            answer(call, [this, tokens = std::move(tokens), special] {
                return wire::Packer().add(engine_.detokenize(tokens, special)).bytes();
            });
            break;
        }
        case Verb::cancel:
            engine_.cancel(unpacker.get<RequestId>());
            break;
        case Verb::info:
            answer(call, [this] {
                ModelInfo info = engine_.info();
                info.sandbox = sandbox::in_force();
                return wire::Packer().add(info).bytes();
            });
            break;
        case Verb::stats:
            answer(call, [this] { return wire::Packer().add(engine_.stats()).bytes(); });
            break;
        case Verb::close:
            engine_.close();   // the outbox ends with it, and its thread ends the process
            break;
        default:
            throw Error("invalid_message", std::string("no message for a worker: ") + name_of(verb));
        }
    }

    // Replies with what `work` packs, or with its error.
    template <typename Work> void answer(CallId call, Work && work) {
        try {
            channel_.send(message(Verb::reply, call, true) + work());
        } catch (const Error & e) {
            channel_.send(reply_error(call, e));
        } catch (const std::bad_alloc &) {
            channel_.send(reply_error(call, Error("out_of_memory", "memory ran out")));
        } catch (const std::exception & e) {
            channel_.send(reply_error(call, Error("internal_error", e.what())));
        }
    }

    // The same on a thread of its own: to tokenize or to compile may take long, and a cancel must not wait for it.
    template <typename Work> void answer_on_thread(CallId call, Work work) {
        ++n_begun_;
        try {
            std::thread([this, call, work = std::move(work)]() mutable {
                answer(call, work);
                ++n_ended_;
            }).detach();
        } catch (const std::system_error &) {
            ++n_ended_;
            channel_.send(reply_error(call, Error("out_of_memory", "no thread could be started for this call")));
        }
    }

    // All that an outbox gets and does not pass on by itself, until it is closed, and the log.
    void pass_on(Outbox & outbox) {
        try {
            for (;;) {
                const std::vector<Event> events = outbox.wait(static_cast<int32_t>(kBeat.count()));
                pass_log_on();
                if (!events.empty()) {
                    channel_.send(message(Verb::events, 0, events));
                }
            }
        } catch (const Error &) {   // closed
            pass_log_on();
        }
    }

    void pass_log_on() {
        auto lines = engine_.drain_log();
        const auto common = log::common().drain();
        lines.insert(lines.end(), common.begin(), common.end());
        if (!lines.empty()) {
            channel_.send(message(Verb::log, 0, lines));
        }
    }

    // Shows that this process lives, and ends it where its engine hangs or its parent is gone. Its own naps are what it
    // counts, so that time in which the whole machine or this process stood still is no reproach.
    void watch() {
        uint64_t n_done = 0, n_ended = 0;
        milliseconds still{0}, unanswered{0};
        for (;;) {
            std::this_thread::sleep_for(kBeat);
            channel_.send(message(Verb::beat, 0, engine_.stats()));
            if (platform::orphaned()) {
                platform::leave(0);
            }
            const uint64_t now = engine_.n_done();
            still = engine_.working() && now == n_done ? still + kBeat : milliseconds(0);
            n_done = now;
            const uint64_t ended = n_ended_;
            unanswered = n_begun_ > ended && ended == n_ended ? unanswered + kBeat : milliseconds(0);
            n_ended = ended;
            if (patience_.count() > 0 && std::max(still, unanswered) >= patience_) {
                last_words("a computation hangs: nothing was finished for " + std::to_string(patience_.count() / 1000) +
                           " seconds");
                platform::leave(kHung);
            }
        }
    }

    platform::Channel & channel_;
    const milliseconds patience_;
    Engine engine_;
    // Straight from the engine's thread to the pipe: another thread in between would take a core from the computation.
    const std::shared_ptr<Outbox> outbox_ = engine_.forwarding_outbox([this](const std::vector<Event> & events) {
        try {
            channel_.send(message(Verb::events, 0, events));
        } catch (const std::exception & e) {  // no memory for them: they would be missing
            last_words(e.what());
            platform::leave(kMalformed);
        }
    });
    std::atomic<uint64_t> n_begun_{0}, n_ended_{0};  // calls that got a thread of their own
};

// The reply to an `estimate`.
std::string estimate(CallId call, const Opening & opening) {
    try {
        return message(Verb::reply, call, true, estimate_memory(opening.path, opening.options));
    } catch (const Error & e) {
        return reply_error(call, e);
    }
}

}  // namespace

void serve(int in, int out, int reason) {
    speak_last_words_to(reason);
    // Never destroyed: the process ends while other threads use them.
    auto * const channel = new platform::Channel(in, out);
    std::string first;
    if (!channel->receive(first)) {
        platform::leave(0);
    }
    try {
        wire::Unpacker unpacker(first);
        const auto verb = unpacker.get<Verb>();
        const auto call = unpacker.get<CallId>();
        // Of another build nothing but the build can be read.
        if ((verb != Verb::open && verb != Verb::estimate) || unpacker.get<std::string>() != wire_build()) {
            throw Error("invalid_message", "the worker is of another build than the package that started it");
        }
        const auto opening =
            wire::Unpacker(std::string_view(first).substr(sizeof(Verb) + sizeof(CallId))).get<Opening>();
        if (opening.most_memory_bytes > 0) {
            platform::limit_memory(opening.most_memory_bytes);
        }
        sandbox::enter(opening.options.device == Device::cpu || gpu_devices().empty());
        if (verb == Verb::estimate) {
            channel->send(estimate(call, opening));
            platform::leave(0);
        }
        (new Server(*channel, opening))->run();
    } catch (const std::exception & e) {
        last_words(e.what());
    }
    platform::leave(kMalformed);
}

}  // namespace pgl
