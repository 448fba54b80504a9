// The machine as this process may use it: threads and memory, container limits included. Reads the system, keeps nothing.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace pgl::machine {

// Threads worth running: the CPUs in this process's affinity mask, one per physical core, cut to the cgroup CPU quota.
int32_t usable_threads();

// Bytes that can still be taken: the least of available memory, the cgroup limit's remainder and RLIMIT_AS/DATA's.
uint64_t available_bytes();

// Runs `work` to its end on a thread whose stack holds `stack_bytes`, and rethrows what it throws. The caller's own
// stack may be small (512 KiB on a macOS secondary thread) where std::regex recurses once per character.
void run_with_stack(uint64_t stack_bytes, const std::function<void()> & work);

// Takes a mapped file's pages out of this process's memory; they stay in the system's cache and return when touched.
// Does nothing where the system does not list its mappings.
void release_mapped_pages(const std::string & path);

// This process's id; compared to notice a fork.
int64_t process_id();

}  // namespace pgl::machine
