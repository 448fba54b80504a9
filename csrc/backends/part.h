// Part: what a GPU backend, a shared library of its own, and the extension that opens it agree on.
#pragma once

#include <ggml-backend.h>

namespace pgl {

// What a part exports under a name of this package's version, PGL_OPEN_PART: hands its log lines to `log`, and returns
// ggml's table of the backend, null where it found no driver. From then on a fault that ggml would end the process with
// is a std::runtime_error out of the call it happened in. The same part also exports ggml's own `ggml_backend_init`, so
// that llama.cpp's programs can open it.
using OpenPart = ggml_backend_reg_t (*)(ggml_log_callback log);

}  // namespace pgl
