// Processes: one that works for another, as both sides of that see it.
#pragma once

#include <cstdint>
#include <string>

namespace pgl::platform {

// How a process ended.
struct Ending {
    bool ended = false;    // false: it runs
    int signal = 0;        // that killed it; 0 = none
    std::string in_words;  // "was killed by signal 11 (segmentation fault)"
};

// Of a child: its id, on Windows its handle. Waits up to `timeout_ms` for its end, and leaves it to be waited for by
// whoever started it.
Ending ending_of(int64_t process, int32_t timeout_ms);

void kill(int64_t process);

// For the worker itself. Ctrl-C and a service manager's signals are its parent's matter, and so is a core dump of
// somebody's weights; when memory runs out it goes before its parent.
void become_worker();

// Private memory from here on, in bytes, at most.
void limit_memory(uint64_t bytes);

// Whether the process that started this one has gone.
bool orphaned();

// Ends this process at once: no destructors, no exit handlers.
[[noreturn]] void leave(int status);

}  // namespace pgl::platform
