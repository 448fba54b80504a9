#include "llama/devices.h"

#include "backends/backends.h"
#include "kernels/kernels.h"
#include "llama/log.h"

#include <ggml-cpu.h>
#include <llama.h>

#include <algorithm>
#include <exception>
#include <mutex>

namespace pgl {
namespace {

// What became of the GPU backends when they were opened. Never destroyed: a GPU may be lost while the process ends.
struct Backends {
    std::vector<backends::Part> parts;
    std::mutex mutex;
    std::vector<ggml_backend_dev_t> lost;   // under the mutex
};

Backends & known() {
    static auto * const all = new Backends;
    return *all;
}

bool is_lost(ggml_backend_dev_t device) {
    const std::lock_guard lock(known().mutex);
    const auto & lost = known().lost;
    return std::find(lost.begin(), lost.end(), device) != lost.end();
}

// 32 doubled numbers, by way of the device's memory. Nothing is freed on the way out of an exception: a GPU that is
// gone would throw again, out of a destructor.
bool computes(ggml_backend_dev_t device) {
    constexpr int64_t n = 32;
    const std::vector<float> ones(n, 1);
    std::vector<float> twos(n, 0);
    ggml_backend_t backend = ggml_backend_dev_init(device, nullptr);
    if (backend == nullptr) {
        return false;
    }
    ggml_context * scratch = ggml_init({ggml_tensor_overhead() * 2 + ggml_graph_overhead(), nullptr, true});
    ggml_tensor * input = ggml_new_tensor_1d(scratch, GGML_TYPE_F32, n);
    ggml_tensor * sum = ggml_add(scratch, input, input);
    ggml_cgraph * graph = ggml_new_graph(scratch);
    ggml_build_forward_expand(graph, sum);
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(scratch, backend);
    bool ok = buffer != nullptr;
    if (ok) {
        ggml_backend_tensor_set(input, ones.data(), 0, n * sizeof(float));
        ok = ggml_backend_graph_compute(backend, graph) == GGML_STATUS_SUCCESS;
        ggml_backend_tensor_get(sum, twos.data(), 0, n * sizeof(float));
    }
    ggml_backend_buffer_free(buffer);
    ggml_free(scratch);
    ggml_backend_free(backend);
    return ok && twos.front() == 2 && twos.back() == 2;
}

std::string device_id(ggml_backend_dev_t device) {
    ggml_backend_dev_props properties;
    ggml_backend_dev_get_props(device, &properties);
    return properties.device_id != nullptr ? properties.device_id : "";
}

}  // namespace

void initialise_backends() {
    static std::once_flag once;
    std::call_once(once, [] {
        log::capture();
        llama_backend_init();
        known().parts = backends::open_all();
        for (const backends::Part & part : known().parts) {
            if (!part.problem.empty()) {
                log::write(log::info, "the " + part.name + " backend cannot be used: " + part.problem);
            }
        }
        kernels::use_lazy_host_buffers();
        kernels::register_backend();
        if (const std::string fault = kernels::self_test(); !fault.empty()) {
            log::write(log::warning, "compute kernels are off, their self-test failed: " + fault);
        }
    });
}

std::vector<ggml_backend_dev_t> gpu_devices() {
    initialise_backends();
    std::vector<ggml_backend_dev_t> cards, integrated;
    std::vector<std::string> seen;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        ggml_backend_dev_t device = ggml_backend_dev_get(i);
        const auto type = ggml_backend_dev_type(device);
        if (type != GGML_BACKEND_DEVICE_TYPE_GPU && type != GGML_BACKEND_DEVICE_TYPE_IGPU) {
            continue;
        }
        const std::string id = device_id(device);
        if (is_lost(device) || (!id.empty() && std::find(seen.begin(), seen.end(), id) != seen.end())) {
            continue;
        }
        seen.push_back(id);
        (type == GGML_BACKEND_DEVICE_TYPE_GPU ? cards : integrated).push_back(device);
    }
    return cards.empty() ? integrated : cards;   // a slow one beside fast ones would set their pace
}

std::string no_gpu_reason() {
    initialise_backends();
    std::string reason;
    const auto add = [&](const std::string & text) { reason += (reason.empty() ? "" : "; ") + text; };
    for (const backends::Part & part : known().parts) {
        if (!part.problem.empty()) {
            add(part.name + ": " + part.problem);
        }
    }
    {
        const std::lock_guard lock(known().mutex);
        for (ggml_backend_dev_t device : known().lost) {
            add(std::string(ggml_backend_dev_name(device)) + " was lost; it can be used again in a new process");
        }
    }
    if (reason.empty() && known().parts.empty() && gpu_devices().empty()) {
        add("this build has no GPU backend");
    }
    return reason;
}

DeviceInfo device_info(ggml_backend_dev_t device) {
    DeviceInfo info;
    info.name = ggml_backend_dev_name(device);
    info.description = ggml_backend_dev_description(device);
    info.gpu = ggml_backend_dev_type(device) != GGML_BACKEND_DEVICE_TYPE_CPU;
    size_t free_bytes = 0, total_bytes = 0;
    ggml_backend_dev_memory(device, &free_bytes, &total_bytes);
    info.memory_bytes = total_bytes;
    info.free_bytes = free_bytes;
    return info;
}

std::vector<DeviceInfo> list_devices() {
    initialise_backends();
    std::vector<DeviceInfo> devices;
    if (ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU); cpu != nullptr) {
        devices.push_back(device_info(cpu));
    }
    for (ggml_backend_dev_t gpu : gpu_devices()) {
        devices.push_back(device_info(gpu));
    }
    return devices;
}

bool still_works(ggml_backend_dev_t device) {
    bool works = false;
    try {
        works = !is_lost(device) && computes(device);
    } catch (const std::exception & e) {
        log::write(log::error, std::string(ggml_backend_dev_name(device)) + " no longer computes: " + e.what());
    }
    if (!works && !is_lost(device)) {
        const std::lock_guard lock(known().mutex);
        known().lost.push_back(device);
    }
    return works;
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
