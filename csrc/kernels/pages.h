// Memory for weights: 2 MiB aligned, huge pages where the system grants them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pgl::kernels {

/// Null when the system has no memory left.
void * allocate_pages(size_t size);
void free_pages(void * pages, size_t size);
/// CPUs this process may run on.
int64_t usable_cpus();

}  // namespace pgl::kernels
