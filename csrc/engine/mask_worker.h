// Mask worker: computes the next masks of guides beside the decode, so that a slow one holds up no other stream.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>

namespace pgl {

class Guide;

// One thread, started when the first mask is asked for.
class MaskWorker {
  public:
    // `on_ready` is called, on the worker's thread, after each mask.
    explicit MaskWorker(std::function<void()> on_ready) : on_ready_(std::move(on_ready)) {}

    // Waits for the mask that is being computed; the others are dropped.
    ~MaskWorker();

    // Computes the guide's next mask, after those that were asked for before. Until the guide is ready() it belongs to
    // the worker; its other owners may let go of it meanwhile. Throws Error("out_of_memory") when no thread can be
    // started.
    void compute(std::shared_ptr<Guide> guide);

  private:
    void work();

    const std::function<void()> on_ready_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::deque<std::shared_ptr<Guide>> queue_;
    bool closing_ = false;
    std::function<void()> wait_for_thread_;  // none was started yet: empty
};

}  // namespace pgl
