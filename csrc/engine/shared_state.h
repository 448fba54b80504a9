// Shared state: what the engine's verbs, which any thread calls, and its own thread have in common.
#pragma once

#include "engine/outbox.h"
#include "engine/sequence.h"
#include "llama/abort.h"
#include "llama/log.h"
#include "request.h"

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

namespace pgl {

class Grammars;
class Model;

using SequencePtr = std::unique_ptr<Sequence>;

struct SharedState {
    const std::string path;   // of the model file
    const EngineOptions options;
    const std::shared_ptr<log::Queue> log = std::make_shared<log::Queue>();
    const std::shared_ptr<Outbox> loading = Outbox::make();  // of the load's events
    Outboxes outboxes;
    Bell bell;
    Abort abort;                                             // polled inside a decode
    std::atomic<bool> working{true};                         // the engine's thread has something to do

    // The rest under this mutex.
    mutable std::mutex mutex;
    std::condition_variable wake_engine;
    std::shared_ptr<Model> model;                  // shared, so that a tokenize outlives a close beside it
    std::shared_ptr<const Grammars> grammars;      // made when first asked for
    std::vector<SequencePtr> inbox;                // submitted, not yet seen by the engine's thread
    std::unordered_set<RequestId> cancelled;       // asked for, not yet acted on
    std::unordered_set<RequestId> computing;       // requests that wait for the decode under way
    Stats stats;
    RequestId last_id = 0;
    int32_t n_live = 0;                            // submitted, no last event yet
    bool closing = false, ended = false;
    std::optional<Error> ended_by;                 // what ended the engine, if nobody closed it

    SharedState(std::string path_, EngineOptions options_) : path(std::move(path_)), options(std::move(options_)) {}

    Error why_ended() const { return ended_by ? *ended_by : engine_closed(); }   // under the mutex
};

}  // namespace pgl
