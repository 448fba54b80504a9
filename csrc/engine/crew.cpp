#include "engine/crew.h"

#include "platform/machine.h"
#include "request.h"

namespace pgl {
namespace {

constexpr uint64_t kStack = uint64_t{16} << 20;   // bytes

}  // namespace

Crew::~Crew() {
    {
        const std::lock_guard lock(mutex_);
        closing_ = true;
    }
    wake_.notify_all();
    for (const std::function<void()> & wait : wait_for_threads_) {
        wait();
    }
}

void Crew::start() {
    started_ = true;
    try {
        while (static_cast<int32_t>(wait_for_threads_.size()) < n_wanted_) {
            wait_for_threads_.push_back(machine::start_with_stack(kStack, [this] { serve(); }));
        }
    } catch (const Error &) {
        // Fewer do.
    }
}

void Crew::share(size_t n, const Work & work) {
    if (!started_) {
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
