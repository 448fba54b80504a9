// Engine: a model and the one thread that does all its work (loop.h). Its verbs may be called from any thread.
#pragma once

#include "engine/shared_state.h"
#include "platform/machine.h"
#include "request.h"

#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace pgl {

// Every verb first checks that it runs in the process that made the engine: Error("forked_engine"). After close():
// Error("engine_closed").
class Engine {
  public:
    // Returns at once; the engine's thread loads the model. loading() then holds `progress` events with id 0 and one
    // `loaded` or `error`.
    Engine(std::string path, EngineOptions options);
    ~Engine();

    // Deletes an engine, unless this process inherited it through fork(): then it stays where it is.
    struct Release {
        void operator()(Engine * engine) const;
    };

    // Tokenizes while the caller waits, and queues. Throws Error: queue_full, context_length_exceeded, invalid_request
    // (also a task that the model cannot do), invalid_model (not loaded), interrupted (`poll` said so).
    RequestId submit(Request request, const machine::Poll & poll = nullptr);

    // The request ends with an `error` event, code "cancelled", unless it has ended. id 0 stops the load.
    // Takes effect after the step under way; that step is aborted when nobody else waits for it.
    void cancel(RequestId id);

    // For the events of one call's requests; closed when the engine ends. `rings`: its reader does not wait in it, but
    // is told by whoever listens to the bell. `quiet`: as Outbox::make.
    std::shared_ptr<Outbox> outbox(bool quiet, bool rings);

    // One that hands events on as they come (Outbox::make_forwarding), on the engine's own thread.
    std::shared_ptr<Outbox> forwarding_outbox(Outbox::Sink sink);

    // The events of the load.
    std::shared_ptr<Outbox> loading() const { return shared_.loading; }

    // As Bell::listen(): which of the outboxes that ring have news.
    std::vector<OutboxId> listen(int32_t timeout_ms);

    // Compiles, or finds compiled, what answers can be held to. Throws Error: invalid_grammar, missing_library.
    void compile(const Constraint & constraint);

    std::vector<Token> tokenize(std::vector<Span> spans, bool add_bos, const machine::Poll & poll = nullptr) const;
    // The bytes that tokens stand for, one after the other. `special`: control tokens by their names, else nothing.
    // Throws Error("invalid_request") for a token that the vocabulary has not.
    std::string detokenize(const std::vector<Token> & tokens, bool special) const;
    ModelInfo info() const;
    Stats stats() const;

    // Why later verbs throw: Error("engine_closed"), or what ended the engine by itself.
    Error why_ended() const;

    // How often something was finished since the start, and whether there is anything to do: while there is, the number
    // grows.
    uint64_t n_done() const { return shared_.abort.n_done; }
    bool working() const { return shared_.working; }

    // What llama.cpp said while it worked for this engine, since the last call: (log::Level, bytes). Never fails.
    std::vector<std::pair<int, std::string>> drain_log() const { return shared_.log->drain(); }

    // Ends every request with an `error` event, code "engine_closed", frees everything, joins. Idempotent.
    void close();

  private:
    std::shared_ptr<Model> loaded_model() const;
    std::shared_ptr<const Grammars> grammars(const std::shared_ptr<Model> & model);

    const int64_t process_id_;
    SharedState shared_;
    std::mutex close_mutex_, grammars_mutex_;
    std::thread thread_;
};

}  // namespace pgl
