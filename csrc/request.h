// The native vocabulary: what crosses the border between Python and the engine. Plain structs; no llama.h, no Python.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace pgl {

using Token = int32_t;
using RequestId = uint64_t;   // 0 names the load of the model itself

class Outbox;                 // outbox.h: what an event waits in

// A refusal or a failure with a name. `code` selects the Python class (polargrid_local/errors.py); `details` carries
// the numbers and names that belong in the message, so that a program need not parse it.
struct Error : std::runtime_error {
    std::string code;
    std::map<std::string, std::string> details;

    Error(std::string code_, const std::string & message, std::map<std::string, std::string> details_ = {})
        : std::runtime_error(message), code(std::move(code_)), details(std::move(details_)) {}
};

// A piece of prompt. Only trusted text (the template's own) may produce control tokens.
struct Span {
    std::string text;
    bool trusted = false;
};

struct SamplingParams {
    float    temperature = 0.7f;         // 0 = greedy
    float    top_p = 0.9f;               // 0 = most likely token only, 1 = off
    int32_t  top_k = 0;                  // <= 0 = off
    float    min_p = 0.0f;               // 0 = off
    float    typical_p = 1.0f;           // 1 = off
    float    repetition_penalty = 1.0f;  // > 0, 1 = off; over prompt and answer
    float    frequency_penalty = 0.0f;   // -2..2; over the answer
    float    presence_penalty = 0.0f;    // -2..2; over the answer
    uint64_t seed = 0;
    int32_t  n_logprobs = -1;            // -1 = none; else the chosen token plus this many alternatives
    std::vector<std::pair<Token, float>> logit_bias;
};

// generate: an answer. embed: one vector for a text. rank: how well a document answers a query.
enum class Task : uint8_t { generate, embed, rank };

inline const char * name_of(Task task) {
    return task == Task::generate ? "generate" : task == Task::embed ? "embed" : "rank";
}

struct Request {
    Task task = Task::generate;
    std::vector<Span> prompt;            // one of prompt and tokens; to rank: query and document, or a template of the model filled in
    std::vector<Token> tokens;
    int32_t max_tokens = 150;            // capped by the room left in the context
    std::vector<std::string> stop;       // matched in the text, never delivered
    std::vector<std::string> filter;     // as stop, but ends with content_filter
    SamplingParams sampling;
    bool ignore_eos = false;             // benchmarks: run to max_tokens
    std::shared_ptr<Outbox> outbox;      // where its events go; null: the engine's own, for wait_events()
};

enum class FinishReason : uint8_t { none, stop, length, content_filter };

struct Usage {
    int32_t n_prompt = 0;
    int32_t n_cached = 0;      // of n_prompt: taken from the prefix cache
    int32_t n_generated = 0;   // tokens sampled, the end-of-generation token not counted
};

struct Timings {               // milliseconds since submit, monotonic clock; < 0 = not reached
    double queue_ms = -1;        // left the queue
    double prefill_ms = -1;      // prompt in the cache
    double first_token_ms = -1;
    double total_ms = -1;
};

struct TokenLogprob {
    Token token = 0;
    float logprob = 0;
    std::string bytes;         // the token's own bytes: maybe half a character
    std::vector<TokenLogprob> top;
};

enum class EventKind : uint8_t {
    progress,   // id 0: the load, `progress` 0..1. Any other id: prefill, n_prompt tokens in `usage` and `progress` 0..1
    loaded,     // id 0, once: info() is valid from here on
    text,       // whole UTF-8 that is decided: no part of a possible stop string
    finished,   // last event of a request that ended well; may carry the last text
    embedding,  // last event of an embed request (the vector) or of a rank request (the scores, one per label)
    error,      // last event of a request that failed (`code`, `text` = message). id 0: the load failed
};

struct Event {
    RequestId id = 0;
    EventKind kind = EventKind::text;
    std::string text;
    std::string code;                            // error: as Error::code
    std::map<std::string, std::string> details;  // error
    FinishReason reason = FinishReason::none;
    float progress = 0;
    Usage usage;
    Timings timings;
    std::vector<TokenLogprob> logprobs;          // of the tokens whose text this event completes
    std::vector<float> embedding;
    std::shared_ptr<Outbox> outbox;              // its address, until it is there
};

enum class Device : uint8_t { automatic, cpu, gpu };
enum class CacheType : uint8_t { f16, q8_0 };

struct EngineOptions {
    Device    device = Device::automatic;
    int32_t   n_gpu_layers = -1;     // -1 = all that the device choice allows
    int32_t   n_ctx = 0;             // tokens per stream; 0 = the model's own, cut to what fits in memory
    int32_t   max_streams = 4;       // sequences in one batch
    int32_t   max_queue = 512;       // requests waiting beyond those; one more is refused
    int32_t   n_threads = 0;         // 0 = what this process may really use (affinity, cgroup quota)
    int32_t   n_batch = 512;         // tokens per prefill step
    CacheType cache_type = CacheType::f16;
    bool      flash_attention = true;
    bool      mmap = true;
    bool      kernels = true;        // our compute kernels; false = ggml's own
    int64_t   prefix_cache_bytes = -1;  // host memory for prefixes beyond the running streams; -1 = as much as the model itself takes
    bool      check_tensors = false; // read every weight and refuse NaN and infinity
    bool      embeddings = true;     // allow embed requests
    std::vector<std::pair<std::string, float>> lora;  // adapter file, scale
};

struct DeviceInfo {
    std::string name, description;
    bool gpu = false;
    uint64_t memory_bytes = 0, free_bytes = 0;
};

struct ModelInfo {
    std::string path, architecture, description, quantization, chat_template, bos_text, eos_text;
    std::string rerank_template;       // with {query} and {document}; "" where a pair is framed by the vocabulary's own tokens
    std::vector<Task> tasks;           // what this model can be asked for
    std::map<std::string, std::string> special_tokens;    // by the names that chat templates use: "bos_token", ...
    std::vector<std::string> additional_special_tokens;   // the other control tokens, by id
    std::vector<std::string> labels;   // of a rank model's scores, where it names them
    uint64_t n_params = 0, file_bytes = 0, weights_bytes = 0;
    uint64_t cache_bytes = 0;          // of the running streams, when all are full
    uint64_t prefix_cache_bytes = 0;   // of prefixes kept beyond them, at most
    int32_t  n_ctx = 0, n_ctx_train = 0, n_vocab = 0, n_embd = 0, n_layer = 0;
    int32_t  longest_piece = 0;        // bytes: no token of the vocabulary is longer
    int32_t  max_streams = 0, n_threads = 0, n_gpu_layers = 0, n_batch = 0;
    bool     add_bos = false, flash_attention = false;
    std::string cache_type, kernels;   // kernels: the instruction set in use, or "off"
    std::string build;                 // pinned llama.cpp build id
    double load_ms = 0;
    std::vector<DeviceInfo> devices;
    std::map<std::string, std::string> metadata;  // scalar GGUF keys
};

struct Stats {
    int32_t  n_running = 0, n_waiting = 0;
    uint64_t n_requests = 0, n_finished = 0, n_cancelled = 0, n_failed = 0;
    uint64_t n_prompt_tokens = 0, n_cached_tokens = 0, n_generated_tokens = 0, n_steps = 0;
    int32_t  n_cells = 0, n_cells_used = 0;     // KV cache, tokens; used = by running streams and held prefixes
    uint64_t prefix_cache_bytes = 0;            // host copies
};

}  // namespace pgl
