// Crew: threads that share what a step has to do for each of its sequences.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <vector>

namespace pgl {

class Crew {
  public:
    using Work = std::function<void(size_t)>;   // must not throw

    // At most so many threads, the caller's own among them; fewer where the system gives no more. Their stacks are
    // large: grammars recurse over what is nested.
    explicit Crew(int32_t n_threads) : n_wanted_(n_threads - 1) {}
    ~Crew();
    Crew(const Crew &) = delete;
    Crew & operator=(const Crew &) = delete;

    // Calls work(0) ... work(n - 1), each once, in any order and on any of the threads. Returns when all have ended.
    void share(size_t n, const Work & work);

  private:
    void start();
    void serve();
    void take(const Work & work);

    const int32_t n_wanted_;
    bool started_ = false;   // by the first share()
    std::vector<std::function<void()>> wait_for_threads_;
    std::mutex mutex_;
    std::condition_variable wake_, idle_;
    const Work * work_ = nullptr;   // what is shared now; the rest belongs to it
    size_t next_ = 0, n_ = 0;
    int32_t n_helping_ = 0;
    bool closing_ = false;
};

}  // namespace pgl
