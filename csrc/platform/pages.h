// Memory straight from the system: zeroed, and taken page by page as it is written.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pgl {

/// huge: 2 MiB aligned, and huge pages where the system grants them. For what is written whole and read often.
enum class PageSize { ordinary, huge };

/// `size` bytes, at least page-aligned. Null when the system has no memory left.
void * allocate_pages(size_t size, PageSize page_size);
/// `size` as it was allocated.
void free_pages(void * pages, size_t size);
/// CPUs this process may run on.
int64_t usable_cpus();

}  // namespace pgl
