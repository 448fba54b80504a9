// Messages: what an engine in a process of its own and the process that uses it say to each other. A message is a Verb,
// the number of a call, and what the verb carries.
#pragma once

#include "llama/devices.h"
#include "worker/wire.h"

#include <array>
#include <cstdint>
#include <string>
#include <utility>

namespace pgl {

using CallId = uint64_t;  // 0: nobody waits for a reply

enum class Verb : uint8_t {
    // to the worker
    open,  // Opening; once, first
    estimate,  // Opening, instead of open; replied to with MemoryEstimate, and that is all
    submit,  // RequestId, Request; replied to
    cancel,  // RequestId
    compile,  // Constraint; replied to
    tokenize,  // spans, add_bos; replied to with tokens
    detokenize,  // tokens, special; replied to with bytes
    info,  // replied to with ModelInfo
    stats,  // replied to with Stats
    close,
    // from the worker
    reply,  // whether it went well; then what the call asked for, or code, message and details of an Error
    events,  // vector of Event
    log,  // vector of (level, text)
    beat,  // Stats: once a second, to show that the worker lives
    ended,  // code, message and details of an Error: why the engine takes no more requests; the last message
};
constexpr auto names(Verb) {
    return std::array{"open",  "estimate", "submit", "cancel", "compile", "tokenize", "detokenize", "info",
                      "stats", "close",    "reply",  "events", "log",     "beat",     "ended"};
}

// The first message.
struct Opening {
    std::string build;  // of the sender: the two must be one build
    std::string path;
    EngineOptions options;
    int32_t patience_ms = 0;  // a computation in which nothing is finished for so long hangs
    uint64_t most_memory_bytes = 0;  // of private memory; 0 = no limit

    template <typename Visit> static constexpr void fields(Visit && field) {
        field("build", &Opening::build);
        field("path", &Opening::path);
        field("options", &Opening::options);
        field("patience_ms", &Opening::patience_ms);
        field("most_memory_bytes", &Opening::most_memory_bytes);
    }
};

// What both ends must have in common: llama.cpp's version, and every field of what they send.
inline std::string wire_build() {
    std::string fields;
    const auto note = [&](const char * name, auto, const auto &...) { fields += std::string(name) + ','; };
    visit_fields<Opening>(note);
    visit_fields<EngineOptions>(note);
    visit_fields<Request>(note);
    visit_fields<SamplingParams>(note);
    visit_fields<Event>(note);
    visit_fields<ModelInfo>(note);
    visit_fields<Stats>(note);
    visit_fields<MemoryEstimate>(note);
    return build_id() + ' ' + fields;
}

template <typename... Parts> std::string message(Verb verb, CallId call, const Parts &... parts) {
    wire::Packer packer;
    packer.add(verb).add(call);
    (packer.add(parts), ...);
    return packer.bytes();
}

inline std::string reply_error(CallId call, const Error & error) {
    return message(Verb::reply, call, false, error.code, std::string(error.what()), error.details);
}

inline Error unpack_error(wire::Unpacker & unpacker) {
    auto code = unpacker.get<std::string>();
    const auto text = unpacker.get<std::string>();
    return {std::move(code), text, unpacker.get<std::map<std::string, std::string>>()};
}

}  // namespace pgl
