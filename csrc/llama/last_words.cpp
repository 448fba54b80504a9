#include "llama/last_words.h"

#include <ggml.h>

#include <cstdlib>
#include <cstring>
#include <exception>

#if defined(_WIN32)
#include <io.h>
#else
#include <unistd.h>
#endif

namespace pgl {
namespace {

int reason_fd = -1;

// Allocates nothing: memory may be what ran out.
void write_reason(const char * text) {
    if (reason_fd < 0) {
        return;
    }
#if defined(_WIN32)
    (void)_write(reason_fd, text, static_cast<unsigned>(std::strlen(text)));
#else
    [[maybe_unused]] const auto n = write(reason_fd, text, std::strlen(text));
#endif
}

[[noreturn]] void on_terminate() {
    try {
        if (const std::exception_ptr exception = std::current_exception()) {
            std::rethrow_exception(exception);
        }
        write_reason("std::terminate was called");
    } catch (const std::exception & e) {
        write_reason(e.what());
    } catch (...) {
        write_reason("an exception of an unknown kind");
    }
    std::abort();
}

}  // namespace

void speak_last_words_to(int fd) {
    reason_fd = fd;
    ggml_set_abort_callback(write_reason);
    std::set_terminate(on_terminate);
}

void last_words(const std::string & text) {
    write_reason(text.c_str());
}

}  // namespace pgl
