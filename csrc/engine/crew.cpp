#include "engine/crew.h"

#include <system_error>

namespace pgl {

Crew::~Crew() {
    {
        const std::lock_guard lock(mutex_);
        closing_ = true;
    }
    wake_.notify_all();
    for (std::thread & thread : threads_) {
        thread.join();
    }
}

void Crew::start() {
    try {
        while (static_cast<int32_t>(threads_.size()) < n_wanted_) {
            threads_.emplace_back([this] { serve(); });
        }
    } catch (const std::system_error &) {
        // Fewer do.
    }
}

void Crew::share(size_t n, const Work & work) {
    if (threads_.empty()) {
        start();
    }
    {
        const std::lock_guard lock(mutex_);
        work_ = &work;
        next_ = 0;
        n_ = n;
    }
    wake_.notify_all();
    take(work);
    std::unique_lock lock(mutex_);
    work_ = nullptr;   // whoever wakes only now finds nothing to do
    idle_.wait(lock, [this] { return n_helping_ == 0; });
}

void Crew::take(const Work & work) {
    for (;;) {
        size_t index = 0;
        {
            const std::lock_guard lock(mutex_);
            if (next_ >= n_) {
                return;
            }
            index = next_++;
        }
        work(index);
    }
}

void Crew::serve() {
    std::unique_lock lock(mutex_);
    for (;;) {
        wake_.wait(lock, [this] { return closing_ || (work_ != nullptr && next_ < n_); });
        if (closing_) {
            return;
        }
        const Work & work = *work_;
        ++n_helping_;
        lock.unlock();
        take(work);
        lock.lock();
        if (--n_helping_ == 0) {
            idle_.notify_one();
        }
    }
}

}  // namespace pgl
