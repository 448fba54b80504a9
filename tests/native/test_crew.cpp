// A crew: every index once, whatever the number of threads and of pieces of work, round after round.
#include "check.h"
#include "engine/crew.h"

#include <atomic>
#include <string>
#include <vector>

using namespace pgl;

namespace {

void every_index_comes_once(int32_t n_threads) {
    Crew crew(n_threads);
    for (size_t n = 0; n < 200; ++n) {
        std::vector<std::atomic<int>> calls(n);
        crew.share(n, [&](size_t i) { ++calls[i]; });
        size_t once = 0;
        for (const std::atomic<int> & count : calls) {
            once += count == 1 ? 1 : 0;
        }
        CHECK_EQ(once, n);
    }
}

void what_was_written_is_seen_by_the_caller() {
    Crew crew(4);
    std::vector<std::string> texts(64);
    for (int round = 0; round < 100; ++round) {
        crew.share(texts.size(), [&](size_t i) { texts[i] = std::to_string(i + static_cast<size_t>(round)); });
        CHECK_EQ(texts.back(), std::to_string(63 + round));
        CHECK_EQ(texts.front(), std::to_string(round));
    }
}

}  // namespace

int main() {
    for (const int32_t n_threads : {0, 1, 2, 5}) {
        every_index_comes_once(n_threads);
    }
    what_was_written_is_seen_by_the_caller();
    return check::result("crew");
}
