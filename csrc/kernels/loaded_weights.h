// Which weights lie in our buffers: what a measurement of the kernels reads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/matmul/layout.h"

namespace pgl::kernels {

/// Rows of that length were written to an address in one of our buffers.
void weights_loaded(const void * buffer, size_t buffer_size, Type type, int64_t row_length, size_t n_bytes);
/// The buffer is about to be freed. Waits for a measurement that reads it.
void weights_gone(const void * buffer);

}  // namespace pgl::kernels
