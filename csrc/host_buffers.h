// Host memory of caches and work buffers: zeroed pages that cost nothing until they are written.
#pragma once

namespace pgl {

// From now on ggml's CPU buffers are such pages. A cache for the whole context of every stream is then as large as what
// it holds, and opening one takes no time: ggml's own buffers are written over with zeros at once. Call before any load.
void use_lazy_host_buffers();

}  // namespace pgl
