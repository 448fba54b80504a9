// llama.cpp's log, kept in bounded queues until Python's logging takes it. Never written to a file descriptor.
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace pgl::log {

enum Level : int { debug = 10, info = 20, warning = 30, error = 40 };  // Python logging's numbers

// Lines of one engine, or of nobody in particular. Their bytes are whatever a file or a library wrote: not always
// UTF-8, for llama.cpp cuts long values at any byte. Any thread.
class Queue {
  public:
    void push(int level, std::string line);

    // Lines since the last call, oldest first. Past 4,096 unread lines the oldest are dropped and one line says how
    // many.
    std::vector<std::pair<int, std::string>> drain();

    // The latest lines of at least warning level, drained or not: what llama.cpp said before it gave up. "" for none.
    std::string complaint() const;

  private:
    mutable std::mutex mutex_;
    std::deque<std::pair<int, std::string>> lines_;
    std::deque<std::string> complaints_;
    size_t n_dropped_ = 0;
};

// While it lives, this thread's lines go to `queue`, so that one engine's lines never turn up at another's reader.
class Scope {
  public:
    explicit Scope(std::shared_ptr<Queue> queue);
    ~Scope();
    Scope(const Scope &) = delete;
    Scope & operator=(const Scope &) = delete;

  private:
    std::shared_ptr<Queue> outer_;
};

// Routes llama.cpp's process-wide log here. Idempotent.
void capture();

// Where the lines of threads without a Scope go: of no model in particular.
Queue & common();

// While on, this thread's lines are debug: an abort that we asked for is no error, though llama.cpp logs four.
void expect_abort(bool on);

void write(Level level, const std::string & line);

// This thread's queue's complaint(), for a message of ours: without the folder of `path`, which a message never shows.
// Where llama.cpp said nothing: "it does not say why".
std::string complaint(const std::string & path = "");

}  // namespace pgl::log
