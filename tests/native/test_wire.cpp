// Wire: what is packed is unpacked the same; bytes of anybody else are refused, never read past their end. And messages
// over a pair of pipes: whole, in order, from many threads.
#include "check.h"
#include "platform/pipe.h"
#include "worker/wire.h"

#include <atomic>
#include <memory>
#include <random>
#include <thread>
#include <unistd.h>

using namespace pgl;
using wire::Packer;
using wire::Unpacker;

namespace {

std::mt19937 random_bits(7);

uint32_t below(uint32_t n) {
    return std::uniform_int_distribution<uint32_t>(0, n - 1)(random_bits);
}

std::string some_text() {
    std::string text(below(20), '\0');
    for (char & c : text) {
        c = static_cast<char>(below(256));
    }
    return text;
}

// Any value of any type that can be sent.
class Filler {
  public:
    template <typename T> void fill(T & value) {
        if constexpr (has_fields<T>) {
            visit_fields(value, [this](const char *, auto & member, const auto &...) { fill(member); });
        } else if constexpr (std::is_enum_v<T>) {
            value = static_cast<T>(below(static_cast<uint32_t>(names(T{}).size())));
        } else if constexpr (std::is_same_v<T, bool>) {
            value = below(2) == 1;
        } else {
            value = static_cast<T>(below(1000)) - static_cast<T>(std::is_signed_v<T> ? 500 : 0);
        }
    }
    void fill(std::string & text) { text = some_text(); }
    template <typename T> void fill(std::vector<T> & items) {
        items.resize(depth_ < 3 ? below(4) : 0);  // a log probability holds a list of its own kind
        ++depth_;
        for (T & item : items) {
            fill(item);
        }
        --depth_;
    }
    template <typename T> void fill(std::map<std::string, T> & values) {
        values.clear();
        for (uint32_t n = below(4); n > 0; --n) {
            fill(values[some_text()]);
        }
    }
    template <typename T> void fill(std::optional<T> & value) {
        value.reset();
        if (below(2) == 0) {
            fill(value.emplace());
        }
    }
    template <typename A, typename B> void fill(std::pair<A, B> & pair) {
        fill(pair.first);
        fill(pair.second);
    }

  private:
    int depth_ = 0;
};

// Bytes that unpack to a T; every shorter piece of them, and many altered ones, do or are refused.
template <typename T> void check_type(const char * name) {
    for (int round = 0; round < 200; ++round) {
        check::context = name;
        T value{};
        Filler().fill(value);
        const std::string bytes = Packer().add(value).bytes();
        Unpacker whole(bytes);
        CHECK_EQ(Packer().add(whole.get<T>()).bytes(), bytes);
        CHECK(whole.at_end());
        for (size_t n = 0; n < bytes.size(); n += 1 + below(8)) {
            // Behind its end lies nothing that may be read: a sanitizer sees it.
            const std::string cut(bytes, 0, n);
            bool refused = false;
            try {
                Unpacker(cut).get<T>();
            } catch (const Error & e) {
                refused = e.code == "invalid_message";
            }
            CHECK(refused);
        }
        for (int i = 0; i < 20 && !bytes.empty(); ++i) {
            std::string other = bytes;
            other[below(static_cast<uint32_t>(other.size()))] = static_cast<char>(below(256));
            try {
                const T read = Unpacker(other).get<T>();
                CHECK(Packer().add(read).bytes().size() <= other.size());
            } catch (const Error & e) {
                CHECK_EQ(e.code, "invalid_message");
            }
        }
    }
}

void check_channel() {
    int there[2], back[2];
    CHECK_EQ(pipe(there), 0);
    CHECK_EQ(pipe(back), 0);
    constexpr int n_threads = 4, n_messages = 500;
    platform::Channel far(there[0], back[1]);
    auto near = std::make_unique<platform::Channel>(back[0], there[1]);
    int n_received = 0, n_whole = 0;
    std::atomic<int> n_sent{0};
    std::thread reader([&] {
        std::string message;
        while (far.receive(message)) {
            // Each consists of one letter, which says how long it is.
            const size_t expected = message.empty() ? 0 : static_cast<unsigned char>(message[0]) * size_t{997};
            n_whole += message == std::string(expected, message.empty() ? '\0' : message[0]) ? 1 : 0;
            ++n_received;
        }
    });
    std::vector<std::thread> writers;
    for (int t = 0; t < n_threads; ++t) {
        writers.emplace_back([&, t] {
            for (int i = 0; i < n_messages; ++i) {
                const auto letter = static_cast<unsigned char>((t * n_messages + i) % 256);
                n_sent += near->send(std::string(letter * size_t{997}, static_cast<char>(letter))) ? 1 : 0;
            }
        });
    }
    for (std::thread & writer : writers) {
        writer.join();
    }
    near.reset();  // the other end hears of it
    reader.join();
    CHECK_EQ(n_sent.load(), n_threads * n_messages);
    CHECK_EQ(n_received, n_threads * n_messages);
    CHECK_EQ(n_whole, n_received);
}

void check_nobody_reads() {
    int there[2], back[2];
    CHECK_EQ(pipe(there), 0);
    CHECK_EQ(pipe(back), 0);
    platform::Channel lonely(back[0], there[1]);
    platform::close_fd(there[0]);
    platform::close_fd(back[1]);
    CHECK(!lonely.send("a message"));  // and no signal ends this process
    std::string message;
    CHECK(!lonely.receive(message));
}

}  // namespace

int main() {
    check_type<Request>("Request");
    check_type<Event>("Event");
    check_type<std::vector<Event>>("vector<Event>");
    check_type<EngineOptions>("EngineOptions");
    check_type<ModelInfo>("ModelInfo");
    check_type<Stats>("Stats");
    check_type<std::vector<Token>>("tokens");
    check_channel();
    check_nobody_reads();
    return check::result("test_wire");
}
