// Abort: how a computation is stopped from outside, and how it shows that it goes on.
#pragma once

#include <atomic>
#include <cstdint>

namespace pgl {

// Set by any thread, polled by the one that computes.
struct Abort {
    std::atomic<bool> requested{false};
    // Counts what was finished since the start: an operation of a pass, a share of a load, a step. What stands still
    // while there is work hangs.
    mutable std::atomic<uint64_t> n_done{0};

    void note_progress() const { n_done.fetch_add(1, std::memory_order_relaxed); }
};

}  // namespace pgl
