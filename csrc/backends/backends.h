// Backends: the GPU backends of this installation, parts beside this library that are opened once.
#pragma once

#include <string>
#include <vector>

namespace pgl::backends {

struct Part {
    std::string name;      // "cuda", "hip" or "vulkan"
    std::string problem;   // why it cannot be used here; "" = ggml knows its devices
};

// Opens the parts that are installed and makes their devices known to ggml. Not thread-safe: before the first load.
std::vector<Part> open_all();

}  // namespace pgl::backends
