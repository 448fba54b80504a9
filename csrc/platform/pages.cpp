// Page allocation and CPU count, per operating system.
#include "platform/pages.h"

#include <thread>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <sys/mman.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace pgl {

#if defined(_WIN32)

void * allocate_pages(size_t size, PageSize) {
    return VirtualAlloc(nullptr, size, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
}

void free_pages(void * pages, size_t) {
    VirtualFree(pages, 0, MEM_RELEASE);
}

#else

namespace {

constexpr size_t huge = size_t(2) << 20;   // bytes

constexpr size_t whole_pages(size_t size) {
    return (size + huge - 1) / huge * huge;
}

}  // namespace

void * allocate_pages(size_t size, PageSize page_size) {
    // For huge pages map one too many and give the ends back, so that the base is aligned.
    const size_t slack = page_size == PageSize::huge ? huge : 0;
    const size_t length = whole_pages(size);
    if (length < size || length + slack < length) {
        return nullptr;
    }
    void * raw = mmap(nullptr, length + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    if (raw == MAP_FAILED || !slack) {
        return raw == MAP_FAILED ? nullptr : raw;
    }
    const auto start = reinterpret_cast<uintptr_t>(raw);
    const uintptr_t base = (start + huge - 1) / huge * huge;
    if (base > start) {
        munmap(raw, base - start);
    }
    if (start + huge > base) {
        munmap(reinterpret_cast<void *>(base + length), start + huge - base);
    }
#if defined(MADV_HUGEPAGE)
    madvise(reinterpret_cast<void *>(base), length, MADV_HUGEPAGE);
#endif
    return reinterpret_cast<void *>(base);
}

void free_pages(void * pages, size_t size) {
    munmap(pages, whole_pages(size));
}

#endif

int64_t usable_cpus() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) == 0) {
        return CPU_COUNT(&set);
    }
#endif
    const unsigned count = std::thread::hardware_concurrency();
    return count ? count : 1;
}

}  // namespace pgl
