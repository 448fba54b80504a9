// Page allocation and CPU count, per operating system.
#include "pages.h"

#include <cstdlib>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#include <sys/mman.h>
#endif

namespace pgl::kernels {

constexpr size_t huge = size_t(2) << 20;

void * allocate_pages(size_t size) {
#if defined(__linux__)
    // Over-map by one huge page and give the ends back, so that the base is aligned.
    const size_t length = (size + huge - 1) / huge * huge;
    void * raw = mmap(nullptr, length + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) {
        return nullptr;
    }
    const auto start = reinterpret_cast<uintptr_t>(raw);
    const uintptr_t base = (start + huge - 1) / huge * huge;
    if (base > start) {
        munmap(raw, base - start);
    }
    if (start + huge > base) {
        munmap(reinterpret_cast<void *>(base + length), start + huge - base);
    }
    madvise(reinterpret_cast<void *>(base), length, MADV_HUGEPAGE);
    return reinterpret_cast<void *>(base);
#elif defined(_WIN32)
    return _aligned_malloc(size, 64);
#else
    return std::aligned_alloc(huge, (size + huge - 1) / huge * huge);
#endif
}

void free_pages(void * pages, size_t size) {
#if defined(__linux__)
    munmap(pages, (size + huge - 1) / huge * huge);
#elif defined(_WIN32)
    _aligned_free(pages);
#else
    std::free(pages);
#endif
}

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

}  // namespace pgl::kernels
