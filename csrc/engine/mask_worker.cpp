#include "engine/mask_worker.h"

#include "engine/guide.h"
#include "platform/machine.h"

#include <utility>

namespace pgl {
namespace {

constexpr uint64_t kStack = uint64_t{16} << 20;  // bytes: the library recurses over what is nested

}  // namespace

MaskWorker::~MaskWorker() {
    {
        const std::lock_guard lock(mutex_);
        closing_ = true;
    }
    wake_.notify_one();
    if (wait_for_thread_) {
        wait_for_thread_();
    }
}

void MaskWorker::compute(std::shared_ptr<Guide> guide) {
    if (!wait_for_thread_) {
        wait_for_thread_ = machine::start_with_stack(kStack, [this] { work(); });
    }
    {
        const std::lock_guard lock(mutex_);
        queue_.push_back(std::move(guide));
    }
    wake_.notify_one();
}

void MaskWorker::work() {
    machine::lower_priority();  // a slow mask takes no processor from the streams that could go on
    for (;;) {
        std::shared_ptr<Guide> guide;
        {
            std::unique_lock lock(mutex_);
            wake_.wait(lock, [this] { return closing_ || !queue_.empty(); });
            if (closing_) {
                return;
            }
            guide = std::move(queue_.front());
            queue_.pop_front();
        }
        guide->compute();
        on_ready_();
    }
}

}  // namespace pgl
