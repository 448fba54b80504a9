// Compute devices: what this build and machine offer.
#pragma once

#include "request.h"

#include <ggml-backend.h>

#include <string>
#include <vector>

namespace pgl {

// Loads llama.cpp's backends, opens the GPU parts and registers our kernels, once per process; must precede every model
// load.
void initialise_backends();

std::vector<DeviceInfo> list_devices();           // CPU first, then the GPUs that models can be placed on
std::vector<ggml_backend_dev_t> gpu_devices();    // each GPU once, whatever number of backends see it; not lost ones
std::string no_gpu_reason();  // why gpu_devices() is empty, or has fewer than one might think; ""
std::vector<std::string> cpu_features();  // "avx2", "avx512_vnni", "neon", ...
std::string build_id();  // pinned llama.cpp version

DeviceInfo device_info(ggml_backend_dev_t device);  // asks the driver for the memory that is free now

// Tries a small computation. False: the GPU is lost to this process, and no model will be placed on it any more.
bool still_works(ggml_backend_dev_t device);

}  // namespace pgl
