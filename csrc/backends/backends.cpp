#include "backends/backends.h"

#include "backends/part.h"
#include "platform/library.h"
#include "request.h"

#include <ggml.h>

#include <exception>

namespace pgl::backends {
namespace {

// Those made for one maker's GPUs first: a GPU that two parts see is used through the first of them.
constexpr const char * names[] = {"cuda", "hip", "vulkan"};

#ifdef _WIN32
constexpr const char * suffix = ".dll";
#else
constexpr const char * suffix = ".so";
#endif

// Returns why the part cannot be used.
std::string open(const std::string & path) {
    ggml_log_callback log = nullptr;
    void * data = nullptr;
    ggml_log_get(&log, &data);
    try {
        ggml_backend_reg_t backend = reinterpret_cast<OpenPart>(platform::symbol_of(path, PGL_OPEN_PART))(log);
        if (backend == nullptr) {
            return "it found no driver";
        }
        if (ggml_backend_reg_dev_count(backend) == 0) {
            return "it found no GPU";
        }
        ggml_backend_register(backend);
        return "";
    } catch (const std::exception & e) {
        return e.what();
    }
}

}  // namespace

std::vector<Part> open_all() {
    std::vector<Part> parts;
    const std::string folder = platform::own_folder() + "/backends/";
    for (const char * name : names) {
        const std::string path = folder + name + suffix;
        if (platform::is_file(path)) {
            parts.push_back({name, open(path)});
        }
    }
    return parts;
}

}  // namespace pgl::backends
