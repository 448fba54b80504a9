// The buffers that hold weights, and the measurement over them.
#include "kernels/loaded_weights.h"

#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "kernels/dispatch.h"
#include "kernels/kernels.h"
#include "kernels/matmul/forms.h"

namespace pgl::kernels {
namespace {

struct Buffer {
    size_t size = 0, filled = 0;
    std::set<std::pair<Type, int64_t>> rows;  // types, and lengths of their rows
};

std::mutex mutex;  // also keeps a buffer alive while it is read
std::map<const void *, Buffer> & buffers() {
    static std::map<const void *, Buffer> all;
    return all;
}

}  // namespace

void weights_loaded(const void * buffer, size_t buffer_size, Type type, int64_t row_length, size_t n_bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    Buffer & entry = buffers()[buffer];
    entry.size = buffer_size;
    entry.filled += n_bytes;
    entry.rows.insert({type, row_length});
}

void weights_gone(const void * buffer) {
    const std::lock_guard<std::mutex> lock(mutex);
    buffers().erase(buffer);
}

void measure_forms() {
    const std::lock_guard<std::mutex> lock(mutex);
    if (!active_isa()) {
        return;
    }
    for (const auto & [memory, buffer] : buffers()) {
        if (buffer.filled < buffer.size - buffer.size / 8) {
            continue;  // another thread is loading it
        }
        for (const auto & [type, row_length] : buffer.rows) {
            measure_forms(type, row_length, static_cast<const uint8_t *>(memory), buffer.size);
        }
    }
}

}  // namespace pgl::kernels
