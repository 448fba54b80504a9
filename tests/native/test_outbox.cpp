// The outbox: nothing lost or reordered, slow readers, quiet readers, and the end.
#include "check.h"
#include "engine/outbox.h"

#include <map>
#include <random>
#include <thread>

using namespace pgl;

namespace {

Event text(RequestId id, const std::string & text, int32_t n_generated = 0) {
    Event event;
    event.id = id;
    event.text = text;
    event.usage.n_generated = n_generated;
    TokenLogprob entry;
    entry.token = n_generated;
    event.logprobs.push_back(entry);
    return event;
}

Event last(RequestId id) {
    Event event;
    event.id = id;
    event.kind = EventKind::finished;
    return event;
}

std::string code_of_wait(Outbox & outbox) {
    try {
        outbox.wait(0);
    } catch (const Error & e) {
        return e.code;
    }
    return "";
}

// Whatever the reader's pace: each request's text whole and in order, its last event last, log-probabilities with it.
void gathered_text_stays_whole() {
    for (unsigned seed = 0; seed < 200; ++seed) {
        check::context = "seed " + std::to_string(seed);
        std::mt19937 random(seed);
        const auto outbox = Outbox::make();
        std::map<RequestId, std::string> sent, got;
        std::map<RequestId, int> n_sent, n_got;
        std::map<RequestId, bool> ended;
        size_t most = 0;
        const auto read = [&] {
            const std::vector<Event> events = outbox->wait(0);
            most = std::max(most, events.size());
            for (const Event & event : events) {
                CHECK(!ended[event.id]);
                got[event.id] += event.text;
                for (const TokenLogprob & entry : event.logprobs) {
                    CHECK_EQ(entry.token, ++n_got[event.id]);
                }
                if (event.kind == EventKind::finished) {
                    ended[event.id] = true;
                } else {
                    CHECK_EQ(event.usage.n_generated, n_got[event.id]);
                }
            }
        };
        const int n_steps = static_cast<int>(random() % 1200);
        const unsigned pace = 1 + random() % 1000;
        for (int step = 0; step < n_steps; ++step) {
            const RequestId id = 1 + random() % 4;
            const std::string piece = std::to_string(step) + ",";
            sent[id] += piece;
            outbox->push({text(id, piece, ++n_sent[id])});
            if (random() % pace == 0) {
                read();
            }
        }
        for (const auto & [id, all] : sent) {
            outbox->push({last(id)});
        }
        read();
        CHECK(sent == got);
        CHECK(most <= 256 + 2 * 4);
        for (const auto & [id, all] : sent) {
            CHECK(ended[id]);
        }
    }
    check::context.clear();
}

void a_quiet_reader_hears_of_ends_only() {
    const auto outbox = Outbox::make(true);
    outbox->push({text(1, "a")});
    CHECK_EQ(outbox->wait(0).size(), size_t{0});
    outbox->push({last(1)});
    const std::vector<Event> events = outbox->wait(0);
    CHECK_EQ(events.size(), size_t{2});
    CHECK_EQ(outbox->wait(0).size(), size_t{0});
}

void a_closed_outbox_says_so_once_it_is_empty() {
    for (const bool quiet : {false, true}) {
        const auto outbox = Outbox::make(quiet);
        outbox->push({text(1, "a")});
        outbox->close();
        CHECK_EQ(outbox->wait(0).size(), size_t{1});
        CHECK_EQ(code_of_wait(*outbox), std::string("engine_closed"));
    }
}

void waking_is_no_event() {
    const auto outbox = Outbox::make(true);
    std::thread waker([&] { outbox->wake(); });
    CHECK_EQ(outbox->wait(60000).size(), size_t{0});   // returns at once
    waker.join();
}

void at_full_speed() {
    const auto outbox = Outbox::make();
    constexpr int n = 100000;
    std::thread writer([&] {
        for (int i = 1; i <= n; ++i) {
            outbox->push({text(1, "x", i)});
        }
        outbox->close();
    });
    size_t n_read = 0;
    int n_logprobs = 0;
    try {
        for (;;) {
            for (const Event & event : outbox->wait(1000)) {
                n_read += event.text.size();
                for (const TokenLogprob & entry : event.logprobs) {
                    CHECK_EQ(entry.token, ++n_logprobs);
                }
            }
        }
    } catch (const Error & e) {
        CHECK_EQ(e.code, std::string("engine_closed"));
    }
    writer.join();
    CHECK_EQ(n_read, size_t{n});
    CHECK_EQ(n_logprobs, n);
}

}  // namespace

int main() {
    gathered_text_stays_whole();
    a_quiet_reader_hears_of_ends_only();
    a_closed_outbox_says_so_once_it_is_empty();
    waking_is_no_event();
    at_full_speed();
    return check::result("outbox");
}
