#include "host_buffers.h"

#include <ggml-backend-impl.h>

#include <cstdint>
#include <cstdlib>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#define PGL_MMAP 1
#endif

namespace pgl {
namespace {

constexpr size_t kAlignment = 64;            // what ggml's CPU buffers promise
constexpr size_t kLeast = size_t{1} << 20;   // below it whole pages would be waste

// Just before the data.
struct Header {
    void * block;
    size_t size;
    bool untouched;     // zeros still; caches are cleared once, right after they are made
};
static_assert(sizeof(Header) <= kAlignment);

Header & header(ggml_backend_buffer_t buffer) {
    return *reinterpret_cast<Header *>(static_cast<uint8_t *>(buffer->context) - kAlignment);
}

decltype(ggml_backend_buffer_type_i::alloc_buffer) allocate_eagerly;
ggml_backend_buffer_i eager;                 // ggml's own, which ours differs from in what touches a whole buffer

// Pages of the system's, not of a heap that would keep them after an engine is closed.
void * zeroed(size_t size) {
#ifdef PGL_MMAP
    void * block = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    return block == MAP_FAILED ? nullptr : block;
#else
    return std::calloc(size, 1);
#endif
}

void free_buffer(ggml_backend_buffer_t buffer) {
    const Header & at = header(buffer);
#ifdef PGL_MMAP
    munmap(at.block, at.size);
#else
    std::free(at.block);
#endif
}

void clear(ggml_backend_buffer_t buffer, uint8_t value) {
    if (value != 0 || !header(buffer).untouched) {
        eager.clear(buffer, value);
    }
    header(buffer).untouched = false;
}

void set_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    header(buffer).untouched = false;
    eager.set_tensor(buffer, tensor, data, offset, size);
}

void memset_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor, uint8_t value, size_t offset, size_t size) {
    header(buffer).untouched = false;
    eager.memset_tensor(buffer, tensor, value, offset, size);
}

ggml_backend_buffer_t allocate(ggml_backend_buffer_type_t type, size_t size) {
    if (size < kLeast) {
        return allocate_eagerly(type, size);
    }
    const size_t whole = size + 2 * kAlignment;
    void * block = whole < size ? nullptr : zeroed(whole);
    if (block == nullptr) {
        return nullptr;
    }
    const uintptr_t data = (reinterpret_cast<uintptr_t>(block) + 2 * kAlignment - 1) / kAlignment * kAlignment;
    ggml_backend_buffer_t buffer = ggml_backend_cpu_buffer_from_ptr(reinterpret_cast<void *>(data), size);
    buffer->buft = type;
    buffer->iface.free_buffer = free_buffer;
    buffer->iface.clear = clear;
    buffer->iface.set_tensor = set_tensor;
    buffer->iface.memset_tensor = memset_tensor;
    header(buffer) = {block, whole, true};
    return buffer;
}

}  // namespace

void use_lazy_host_buffers() {
    ggml_backend_buffer_type_i & interface = ggml_backend_cpu_buffer_type()->iface;
    if (interface.alloc_buffer == allocate) {
        return;
    }
    alignas(kAlignment) static uint8_t bytes[kAlignment];
    ggml_backend_buffer_t sample = ggml_backend_cpu_buffer_from_ptr(bytes, sizeof bytes);
    eager = sample->iface;
    ggml_backend_buffer_free(sample);
    allocate_eagerly = interface.alloc_buffer;
    interface.alloc_buffer = allocate;
}

}  // namespace pgl
