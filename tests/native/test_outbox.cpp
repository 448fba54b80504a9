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

// Whatever the reader's pace: each request's text whole and in order, marks at their places, its last event last,
// log-probabilities with it.
void gathered_text_stays_whole() {
    for (unsigned seed = 0; seed < 200; ++seed) {
        check::context = "seed " + std::to_string(seed);
        std::mt19937 random(seed);
        const auto outbox = Outbox::make();
        std::map<RequestId, std::string> sent, got;
        std::map<RequestId, int> n_sent, n_got;
        std::map<RequestId, bool> ended;
        size_t most = 0, n_marks = 0;
        const auto read = [&] {
            const std::vector<Event> events = outbox->wait(0);
            most = std::max(most, events.size());
            for (const Event & event : events) {
                CHECK(!ended[event.id]);
                got[event.id] += event.text + event.mark;
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
            Event event = text(id, random() % 5 == 0 ? "" : piece, ++n_sent[id]);
            event.mark = random() % 5 == 0 ? "<mark " + std::to_string(step) + ">" : "";
            sent[id] += event.text + event.mark;
            n_marks += !event.mark.empty();
            outbox->push({std::move(event)});
            if (random() % pace == 0) {
                read();
            }
        }
        for (const auto & [id, all] : sent) {
            outbox->push({last(id)});
        }
        read();
        CHECK(sent == got);
        CHECK(most <= 256 + 2 * 4 + n_marks);
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

void there_is_one_ring_until_it_is_read() {
    const auto outbox = Outbox::make(false, 7);
    CHECK(outbox->push({text(1, "a")}));
    CHECK(!outbox->push({text(1, "b")}));  // its reader knows that there is something
    CHECK_EQ(outbox->drain().size(), size_t{2});
    CHECK_EQ(outbox->drain().size(), size_t{0});
    CHECK(outbox->push({text(1, "c")}));

    const auto quiet = Outbox::make(true, 8);
    CHECK(!quiet->push({text(1, "a")}));
    CHECK_EQ(quiet->drain().size(), size_t{0});
    CHECK(quiet->push({last(1)}));
    CHECK_EQ(quiet->drain().size(), size_t{2});
}

void the_bell_tells_every_outbox_once() {
    Bell bell;
    CHECK_EQ(bell.listen(0).size(), size_t{0});
    bell.ring({1, 2});
    bell.ring({3});
    CHECK(bell.listen(60000) == (std::vector<OutboxId>{1, 2, 3}));
    CHECK_EQ(bell.listen(0).size(), size_t{0});
    bell.ring({4});
    bell.close();
    CHECK(bell.listen(60000) == std::vector<OutboxId>{4});
    std::string code;
    try {
        bell.listen(60000);
    } catch (const Error & e) {
        code = e.code;
    }
    CHECK_EQ(code, std::string("engine_closed"));
}

// One thread listens for many outboxes and drains those that ring: the readers of event loops, at full speed.
void no_ring_is_lost() {
    constexpr OutboxId n_outboxes = 4;
    constexpr int n = 20000;
    Bell bell;
    std::vector<std::shared_ptr<Outbox>> outboxes;
    for (OutboxId id = 1; id <= n_outboxes; ++id) {
        outboxes.push_back(Outbox::make(false, id));
    }
    std::thread writer([&] {
        std::mt19937 random(1);
        for (int i = 0; i < n; ++i) {
            const auto & outbox = outboxes[random() % n_outboxes];
            if (outbox->push({text(1, "x")})) {
                bell.ring({outbox->id()});
            }
        }
        bell.close();
    });
    size_t n_read = 0;
    try {
        for (;;) {
            for (const OutboxId id : bell.listen(1000)) {
                for (const Event & event : outboxes[id - 1]->drain()) {
                    n_read += event.text.size();
                }
            }
        }
    } catch (const Error & e) {
        CHECK_EQ(e.code, std::string("engine_closed"));
    }
    writer.join();
    CHECK_EQ(n_read, size_t{n});
}

void forwards_events() {
    std::vector<std::string> seen;
    const auto outbox = Outbox::make_forwarding([&](const std::vector<Event> & events) {
        for (const Event & event : events) {
            seen.push_back(event.text);
        }
    });
    for (int i = 0; i < 1000; ++i) {
        Event event;
        event.id = 1;
        event.text = std::to_string(i);
        CHECK(!outbox->push({event}));   // nobody is to be told
    }
    CHECK_EQ(seen.size(), 1000u);
    CHECK_EQ(seen.back(), "999");
    CHECK(outbox->drain().empty());
    outbox->close();
    bool closed = false;
    try {
        outbox->wait(0);
    } catch (const Error & e) {
        closed = e.code == "engine_closed";
    }
    CHECK(closed);
}

}  // namespace

int main() {
    forwards_events();
    gathered_text_stays_whole();
    a_quiet_reader_hears_of_ends_only();
    a_closed_outbox_says_so_once_it_is_empty();
    waking_is_no_event();
    at_full_speed();
    there_is_one_ring_until_it_is_read();
    the_bell_tells_every_outbox_once();
    no_ring_is_lost();
    return check::result("outbox");
}
