// The machine as this process may use it: threads and memory, container limits included. Reads the system, keeps
// nothing.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace pgl::machine {

// Threads worth running: the CPUs in this process's affinity mask, one per physical core, cut to the cgroup CPU quota.
int32_t usable_threads();

// Bytes that can still be taken: the least of available memory, the cgroup limit's remainder and RLIMIT_AS/DATA's.
uint64_t available_bytes();

// Asked about every 50 ms by a caller that waits: true = it wants to leave.
using Poll = std::function<bool()>;

// Bytes of memory that this process has in use at this moment; 0 where the system does not tell.
uint64_t resident_bytes();

// Runs `work` to its end on a thread whose stack holds `stack_bytes`, and rethrows what it throws. The caller's own
// stack may be small (512 KiB on a macOS secondary thread) where std::regex recurses once per character.
// With `poll` the caller may leave before the end: Error("interrupted"). The work then goes on by itself, so it must
// own whatever it touches; an exit of the process waits for it.
void run_with_stack(uint64_t stack_bytes, std::function<void()> work, const Poll & poll = nullptr);

// Starts `work` on such a thread and returns at once: what waits for its end, and rethrows what it threw.
std::function<void()> start_with_stack(uint64_t stack_bytes, std::function<void()> work);

// Whether `n` threads can be started beside those that run, with stacks of the default size. They are started and
// ended.
bool can_start_threads(int32_t n);

// Takes a mapped file's pages out of this process's memory; they stay in the system's cache and return when touched.
// Does nothing where the system does not list its mappings.
void release_mapped_pages(const std::string & path);

// This process's id; compared to notice a fork.
int64_t process_id();

// From here on the calling thread leaves the processor to others that want it. Linux; elsewhere nothing changes.
void lower_priority();

}  // namespace pgl::machine
