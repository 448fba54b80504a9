#include "backends/part.h"

#include <ggml.h>

#include <stdexcept>

#ifdef _WIN32
#define PGL_EXPORT extern "C" __declspec(dllexport)
#else
#define PGL_EXPORT extern "C" __attribute__((visibility("default")))
#endif

extern "C" ggml_backend_reg_t PGL_BACKEND_REGISTER(void);   // of the one backend that this part is linked with

PGL_EXPORT ggml_backend_reg_t ggml_backend_init(void) {
    ggml_time_init();   // this part's copy of ggml has a clock of its own
    return PGL_BACKEND_REGISTER();
}

PGL_EXPORT ggml_backend_reg_t PGL_OPEN_PART(ggml_log_callback log) {
    ggml_log_set(log, nullptr);
    ggml_set_abort_callback([](const char * message) { throw std::runtime_error(message); });
    return ggml_backend_init();
}
