// ggml's host buffers (caches, work memory) as zeroed pages that cost nothing until they are written.
#include "kernels/kernels.h"

#include "ggml-backend-impl.h"

#include "platform/pages.h"

namespace pgl::kernels {
namespace {

constexpr size_t alignment = 64;             // what ggml's CPU buffers promise
constexpr size_t least = size_t(1) << 20;    // below it whole pages would be waste

// At the start of the pages; the data follow at the next aligned address.
struct Header {
    bool untouched;     // zeros still; caches are cleared once, right after they are made
};
static_assert(sizeof(Header) <= alignment);

Header & header(ggml_backend_buffer_t buffer) {
    return *reinterpret_cast<Header *>(static_cast<char *>(buffer->context) - alignment);
}

decltype(ggml_backend_buffer_type_i::alloc_buffer) allocate_eagerly;
ggml_backend_buffer_i eager;                 // ggml's own, which ours differs from in what touches a whole buffer

void free_buffer(ggml_backend_buffer_t buffer) {
    free_pages(&header(buffer), buffer->size + alignment);
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
    if (size < least) {
        return allocate_eagerly(type, size);
    }
    // Small pages: a cache is many tensors, and each would begin to fill a huge page of its own.
    void * pages = size > SIZE_MAX - alignment ? nullptr : allocate_pages(size + alignment, PageSize::ordinary);
    if (!pages) {
        return nullptr;
    }
    ggml_backend_buffer_t buffer = ggml_backend_cpu_buffer_from_ptr(static_cast<char *>(pages) + alignment, size);
    buffer->buft = type;
    buffer->iface.free_buffer = free_buffer;
    buffer->iface.clear = clear;
    buffer->iface.set_tensor = set_tensor;
    buffer->iface.memset_tensor = memset_tensor;
    header(buffer) = {true};
    return buffer;
}

}  // namespace

void use_lazy_host_buffers() {
    alignas(alignment) static char bytes[alignment];
    ggml_backend_buffer_t sample = ggml_backend_cpu_buffer_from_ptr(bytes, sizeof bytes);
    eager = sample->iface;
    ggml_backend_buffer_free(sample);
    allocate_eagerly = ggml_backend_cpu_buffer_type()->iface.alloc_buffer;
    ggml_backend_cpu_buffer_type()->iface.alloc_buffer = allocate;
}

}  // namespace pgl::kernels
