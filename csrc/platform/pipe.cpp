#include "platform/pipe.h"

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <system_error>

#if defined(_WIN32)
#include <io.h>
#else
#include <csignal>
#include <pthread.h>
#include <unistd.h>
#endif

namespace pgl::platform {
namespace {

constexpr uint64_t kMostBytes = uint64_t{1} << 31;   // of one message

#if defined(_WIN32)
struct NoBrokenPipeSignal {};
int64_t write_some(int fd, const char * data, size_t size) {
    return _write(fd, data, static_cast<unsigned>(size < (1u << 20) ? size : 1u << 20));
}
#else
// Writing into a pipe that nobody reads raises a signal that ends a process. Ours says EPIPE instead, whatever the host
// does with that signal.
class NoBrokenPipeSignal {
  public:
    NoBrokenPipeSignal() {
        sigemptyset(&pipe_);
        sigaddset(&pipe_, SIGPIPE);
        sigset_t pending;
        sigpending(&pending);
        was_pending_ = sigismember(&pending, SIGPIPE) == 1;
        pthread_sigmask(SIG_BLOCK, &pipe_, &before_);
    }
    ~NoBrokenPipeSignal() {
        sigset_t pending;
        sigpending(&pending);
        if (!was_pending_ && sigismember(&pending, SIGPIPE) == 1) {
            int taken = 0;
            sigwait(&pipe_, &taken);
        }
        pthread_sigmask(SIG_SETMASK, &before_, nullptr);
    }
    NoBrokenPipeSignal(const NoBrokenPipeSignal &) = delete;
    NoBrokenPipeSignal & operator=(const NoBrokenPipeSignal &) = delete;

  private:
    sigset_t pipe_{}, before_{};
    bool was_pending_ = false;
};
int64_t write_some(int fd, const char * data, size_t size) {
    return write(fd, data, size);
}
#endif

}  // namespace

size_t read_some(int fd, char * data, size_t size) {
    for (;;) {
#if defined(_WIN32)
        const int64_t n = _read(fd, data, static_cast<unsigned>(size));
#else
        const int64_t n = read(fd, data, size);
#endif
        if (n >= 0) {
            return static_cast<size_t>(n);
        }
        if (errno != EINTR) {
            throw std::system_error(errno, std::generic_category(), "read from a pipe");
        }
    }
}

void close_fd(int fd) {
#if defined(_WIN32)
    _close(fd);
#else
    close(fd);
#endif
}

Channel::~Channel() {
    close_fd(in_);
    close_fd(out_);
}

bool Channel::send(const std::string & message) {
    const uint64_t size = message.size();
    std::string bytes(reinterpret_cast<const char *>(&size), sizeof size);
    bytes += message;
    const std::lock_guard lock(sending_);
    const NoBrokenPipeSignal scope;
    for (size_t sent = 0; sent < bytes.size();) {
        const int64_t n = write_some(out_, bytes.data() + sent, bytes.size() - sent);
        if (n < 0 && errno != EINTR) {
            return false;
        }
        sent += n > 0 ? static_cast<size_t>(n) : 0;
    }
    return true;
}

// Until `n` bytes lie in the buffer.
bool Channel::fill(size_t n) {
    if (buffer_.size() - start_ >= n) {
        return true;
    }
    buffer_.erase(0, start_);
    start_ = 0;
    while (buffer_.size() < n) {
        constexpr size_t kChunk = size_t{64} << 10;
        const size_t before = buffer_.size();
        buffer_.resize(before + kChunk);
        size_t got = 0;
        try {
            got = read_some(in_, buffer_.data() + before, kChunk);
        } catch (const std::system_error &) {
            got = 0;
        }
        buffer_.resize(before + got);
        if (got == 0) {
            return false;
        }
    }
    return true;
}

bool Channel::receive(std::string & message) {
    uint64_t size = 0;
    if (!fill(sizeof size)) {
        return false;
    }
    std::memcpy(&size, buffer_.data() + start_, sizeof size);
    if (size > kMostBytes || !fill(sizeof size + size)) {
        return false;
    }
    message.assign(buffer_, start_ + sizeof size, size);
    start_ += sizeof size + size;
    return true;
}

}  // namespace pgl::platform
