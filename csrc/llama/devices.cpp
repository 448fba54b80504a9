#include "llama/devices.h"

#include "kernels/kernels.h"
#include "llama/log.h"

#include <ggml-cpu.h>
#include <llama.h>

#include <algorithm>
#include <mutex>

namespace pgl {

void initialise_backends() {
    static std::once_flag once;
    std::call_once(once, [] {
        log::capture();
        llama_backend_init();
        kernels::use_lazy_host_buffers();
        kernels::register_backend();
        if (const std::string fault = kernels::self_test(); !fault.empty()) {
            log::write(log::warning, "compute kernels are off, their self-test failed: " + fault);
        }
    });
}

std::vector<ggml_backend_dev_t> gpu_devices() {
    initialise_backends();
    std::vector<ggml_backend_dev_t> devices;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        ggml_backend_dev_t device = ggml_backend_dev_get(i);
        const auto type = ggml_backend_dev_type(device);
        if (type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU) {
            devices.push_back(device);
        }
    }
    return devices;
}

std::vector<DeviceInfo> list_devices() {
    initialise_backends();
    std::vector<DeviceInfo> devices;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        ggml_backend_dev_t device = ggml_backend_dev_get(i);
        const auto type = ggml_backend_dev_type(device);
        const bool gpu = type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU;
        if (!gpu && type != GGML_BACKEND_DEVICE_TYPE_CPU) {
            continue;
        }
        DeviceInfo info;
        info.name = ggml_backend_dev_name(device);
        info.description = ggml_backend_dev_description(device);
        info.gpu = gpu;
        size_t free_bytes = 0, total_bytes = 0;
        ggml_backend_dev_memory(device, &free_bytes, &total_bytes);
        info.memory_bytes = total_bytes;
        info.free_bytes = free_bytes;
        devices.push_back(std::move(info));
    }
    std::stable_partition(devices.begin(), devices.end(), [](const DeviceInfo & device) { return !device.gpu; });
    return devices;
}

std::vector<std::string> cpu_features() {
    const std::pair<const char *, int (*)()> table[] = {
        {"avx", ggml_cpu_has_avx},
        {"avx2", ggml_cpu_has_avx2},
        {"fma", ggml_cpu_has_fma},
        {"f16c", ggml_cpu_has_f16c},
        {"avx_vnni", ggml_cpu_has_avx_vnni},
        {"avx512", ggml_cpu_has_avx512},
        {"avx512_vnni", ggml_cpu_has_avx512_vnni},
        {"avx512_bf16", ggml_cpu_has_avx512_bf16},
        {"amx_int8", ggml_cpu_has_amx_int8},
        {"neon", ggml_cpu_has_neon},
        {"dotprod", ggml_cpu_has_dotprod},
        {"i8mm", ggml_cpu_has_matmul_int8},
        {"sve", ggml_cpu_has_sve},
    };
    std::vector<std::string> features;
    for (const auto & [name, has] : table) {
        if (has() != 0) {
            features.emplace_back(name);
        }
    }
    return features;
}

std::string build_id() {
    return std::string("llama.cpp ") + llama_version();
}

}  // namespace pgl
