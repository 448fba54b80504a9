// Compute devices: what this build and machine offer.
#pragma once

#include "request.h"

#include <ggml-backend.h>

#include <string>
#include <vector>

namespace pgl {

// Loads llama.cpp's backends and registers our kernels, once per process; must precede every model load.
void initialise_backends();

std::vector<DeviceInfo> list_devices();           // CPU first
std::vector<ggml_backend_dev_t> gpu_devices();    // in llama.cpp's order
std::vector<std::string> cpu_features();          // "avx2", "avx512_vnni", "neon", ...
std::string build_id();                           // pinned llama.cpp version

}  // namespace pgl
