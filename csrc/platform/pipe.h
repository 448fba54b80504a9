// Pipe ends: whole messages over a pair of pipes.
#pragma once

#include <mutex>
#include <string>

namespace pgl::platform {

// Reads what is there, at most `size` bytes, waiting for the first; 0 at the end. Throws std::system_error.
size_t read_some(int fd, char * data, size_t size);

void close_fd(int fd);

// Closes both descriptors with itself.
class Channel {
  public:
    Channel(int in, int out) : in_(in), out_(out) {}
    ~Channel();
    Channel(const Channel &) = delete;
    Channel & operator=(const Channel &) = delete;

    // Any thread. False: the other end is gone.
    bool send(const std::string & message);

    // One thread at a time. False: the other end is gone, or said something that is no message.
    bool receive(std::string & message);

  private:
    bool fill(size_t n);

    const int in_, out_;
    std::mutex sending_;
    std::string buffer_;   // read and not yet taken, from start_ on
    size_t start_ = 0;
};

}  // namespace pgl::platform
