// The native vocabulary: what crosses the border between Python and the engine. Plain structs; no llama.h, no Python.
// fields() lists what Python sees of a struct; names() are the words for an enum's values, in their order.
#pragma once

#include "fields.h"

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace pgl {

using Token = int32_t;
using RequestId = uint64_t;  // 0 names the load of the model itself
using OutboxId = uint64_t;

// Rows of one sequence in a pass that generates, at most: its next token, and those of a draft.
inline constexpr int32_t kMaxRows = 16;

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

    template <typename Visit> static constexpr void fields(Visit && field) {
        field("text", &Span::text);
        field("trusted", &Span::trusted);
    }
};

struct SamplingParams {
    float temperature = 0.7f;         // 0 = greedy
    float top_p = 0.9f;               // 0 = most likely token only, 1 = off
    int32_t top_k = 0;                  // <= 0 = off
    float min_p = 0.0f;               // 0 = off
    float typical_p = 1.0f;           // 1 = off
    float repetition_penalty = 1.0f;  // > 0, 1 = off; over prompt and answer
    float frequency_penalty = 0.0f;   // -2..2; over the answer
    float presence_penalty = 0.0f;    // -2..2; over the answer
    int32_t repeat_last_n = -1;         // tokens that the repetition penalty looks back at; -1 = all, 0 = none
    float dry_multiplier = 0.0f;      // 0 = off
    float dry_base = 1.75f;
    int32_t dry_allowed_length = 2;     // tokens that may be repeated freely
    int32_t dry_penalty_last_n = -1;    // tokens that are searched for repetitions; -1 = all, 0 = none
    std::vector<std::string> dry_sequence_breakers;   // texts that no repetition reaches across
    float dynatemp_range = 0.0f;      // temperature - range .. temperature + range, by entropy; 0 = off
    float dynatemp_exponent = 1.0f;
    float top_n_sigma = 0.0f;         // standard deviations of the logits below the best; <= 0 = off
    float xtc_probability = 0.0f;     // 0 = off
    float xtc_threshold = 0.1f;       // > 0.5 = off
    int32_t mirostat = 0;               // version 1 or 2; 0 = off
    float mirostat_tau = 5.0f;        // surprise aimed at, in bits
    float mirostat_eta = 0.1f;        // learning rate
    std::vector<Token> allowed_token_ids;   // nothing else is chosen; empty = off
    std::vector<std::string> bad_words;     // texts that are not said, as far as their own tokens go
    uint64_t seed = 0;
    int32_t n_logprobs = -1;            // -1 = none; else the chosen token plus this many alternatives
    std::vector<Token> logprob_token_ids;   // in place of the likeliest: these and the chosen one; empty = off
    bool post_sampling_probs = false;   // logprobs are those the token was drawn by, not the model's own
    std::vector<std::pair<Token, float>> logit_bias;

    template <typename Visit> static constexpr void fields(Visit && field) {
        field("temperature", &SamplingParams::temperature, Range{0, 100});
        field("top_p", &SamplingParams::top_p, Range{0, 1});
        field("top_k", &SamplingParams::top_k);
        field("min_p", &SamplingParams::min_p, Range{0, 1});
        field("typical_p", &SamplingParams::typical_p, Range{0, 1});
        field("repetition_penalty", &SamplingParams::repetition_penalty, Range{0, 100, true});
        field("frequency_penalty", &SamplingParams::frequency_penalty, Range{-100, 100});
        field("presence_penalty", &SamplingParams::presence_penalty, Range{-100, 100});
        field("repeat_last_n", &SamplingParams::repeat_last_n, Range{-1, 1 << 30});
        field("dry_multiplier", &SamplingParams::dry_multiplier, Range{0, 100});
        field("dry_base", &SamplingParams::dry_base, Range{1, 100});
        field("dry_allowed_length", &SamplingParams::dry_allowed_length, Range{1, 1 << 30});
        field("dry_penalty_last_n", &SamplingParams::dry_penalty_last_n, Range{-1, 1 << 30});
        field("dry_sequence_breakers", &SamplingParams::dry_sequence_breakers);
        field("dynatemp_range", &SamplingParams::dynatemp_range, Range{0, 100});
        field("dynatemp_exponent", &SamplingParams::dynatemp_exponent, Range{0, 100});
        field("top_n_sigma", &SamplingParams::top_n_sigma, Range{-1, 100});
        field("xtc_probability", &SamplingParams::xtc_probability, Range{0, 1});
        field("xtc_threshold", &SamplingParams::xtc_threshold, Range{0, 1});
        field("mirostat", &SamplingParams::mirostat, Range{0, 2});
        field("mirostat_tau", &SamplingParams::mirostat_tau, Range{0, 100});
        field("mirostat_eta", &SamplingParams::mirostat_eta, Range{0, 1});
        field("allowed_token_ids", &SamplingParams::allowed_token_ids);
        field("bad_words", &SamplingParams::bad_words);
        field("seed", &SamplingParams::seed);
        field("n_logprobs", &SamplingParams::n_logprobs, Range{-1, 100});
        field("logprob_token_ids", &SamplingParams::logprob_token_ids);
        field("post_sampling_probs", &SamplingParams::post_sampling_probs);
        field("logit_bias", &SamplingParams::logit_bias);
    }
};

// generate: an answer. embed: one vector for a text. rank: how well a document answers a query.
enum class Task : uint8_t { generate, embed, rank };
constexpr auto names(Task) {
    return std::array{"generate", "embed", "rank"};
}

// What an answer is held to: `kind` json_schema, lark or regex, and its text; no kind = nothing.
struct Constraint {
    std::string kind;
    std::string text;

    template <typename Visit> static constexpr void fields(Visit && field) {
        field("kind", &Constraint::kind);
        field("text", &Constraint::text);
    }
};

// The thinking of an answer, which ends with its closing tag, or is ended after so many tokens.
struct ThoughtLimit {
    int32_t max_tokens = -1;       // without its tags; -1 = it ends by itself
    std::string opening, closing;  // the tags, as they are written
    std::string answer;            // what is written before the answer proper, after the closing tag
    bool opened = false;           // by the prompt

    template <typename Visit> static constexpr void fields(Visit && field) {
        field("max_tokens", &ThoughtLimit::max_tokens, Range{-1, 1 << 30});
        field("opening", &ThoughtLimit::opening);
        field("closing", &ThoughtLimit::closing);
        field("answer", &ThoughtLimit::answer);
        field("opened", &ThoughtLimit::opened);
    }
};

// One factor for each adapter of the load, in its order; 0 = left out. Empty where no adapter was loaded.
using AdapterScales = std::vector<float>;

// Changes the logits [n_vocab] that follow `tokens`, prompt and answer so far, before anything else is done with them.
// Called by the engine's threads. Throws Error.
using LogitsProcessor = std::function<void(const std::vector<Token> & tokens, float * logits, int32_t n_vocab)>;

struct Request {
    RequestId id = 0;  // chosen by who passes it on from another process; 0: the engine's to choose
    Task task = Task::generate;
    std::vector<Span> prompt;  // to rank: query and document, or a template of the model filled in
    std::vector<Token> prompt_tokens;  // in place of a prompt in text
    int32_t keep_tokens = 0;  // of the prompt: its last ones, what comes before them is cut off; 0 = all are kept
    bool keep_first = false;  // its first ones instead
    int32_t n_prompt_logprobs = -1;  // as n_logprobs, of the prompt's own tokens: it is computed anew then
    int32_t max_tokens = 150;  // capped by the room left in the context; 0 = the prompt is read, and that is all
    int32_t min_tokens = 0;  // before so many no token ends the answer, and no stop string
    std::vector<std::string> stop;  // matched in the text, never delivered
    std::vector<Token> stop_token_ids;  // as an end-of-generation token
    bool include_stop = false;  // what stopped the answer is delivered after all
    std::vector<std::string> filter;  // as stop, but ends with content_filter
    std::vector<std::string> marks;  // texts of control tokens: where one comes, an event ends with it and names it
    bool show_special = false;  // other control tokens of the answer are text
    bool return_tokens = false;  // events carry the ids of their tokens, the first of them those of the prompt
    // Which adapters of the load (index, scale) it runs with, and no others. Without a value: all, as they were loaded.
    std::optional<std::vector<std::pair<int32_t, float>>> lora;
    SamplingParams sampling;
    Constraint constraint;
    ThoughtLimit thought;
    std::string prediction;  // what the answer may repeat: drafts are taken from it, the answer stays the same
    bool ignore_eos = false;  // benchmarks: run to max_tokens
    std::vector<Token> replay;  // benchmarks: the answer begins with these, whatever the model says
    LogitsProcessor logits_processor;  // of a caller in this process; empty = none
    std::shared_ptr<Outbox> outbox;  // where its events go; never null

    template <typename Visit> static constexpr void fields(Visit && field) {
        field("task", &Request::task);
        field("prompt", &Request::prompt);
        field("prompt_tokens", &Request::prompt_tokens);
        field("keep_tokens", &Request::keep_tokens, Range{0, 1 << 30});
        field("keep_first", &Request::keep_first);
        field("n_prompt_logprobs", &Request::n_prompt_logprobs, Range{-1, 100});
        field("max_tokens", &Request::max_tokens);
        field("min_tokens", &Request::min_tokens, Range{0, 1 << 30});
        field("stop", &Request::stop);
        field("stop_token_ids", &Request::stop_token_ids);
        field("include_stop", &Request::include_stop);
        field("filter", &Request::filter);
        field("marks", &Request::marks);
        field("show_special", &Request::show_special);
        field("return_tokens", &Request::return_tokens);
        field("lora", &Request::lora);
        field("ignore_eos", &Request::ignore_eos);
        field("replay", &Request::replay);
        field("sampling", &Request::sampling);
        field("constraint", &Request::constraint);
        field("thought", &Request::thought);
        field("prediction", &Request::prediction);
    }
};

enum class FinishReason : uint8_t { none, stop, length, content_filter };
constexpr auto names(FinishReason) {
    return std::array{"", "stop", "length", "content_filter"};
}

struct Usage {
    int32_t n_prompt = 0;
    int32_t n_cached = 0;  // of n_prompt: taken from the prefix cache
    int32_t n_generated = 0;  // tokens sampled, the end-of-generation token not counted
    int32_t n_accepted = 0, n_rejected = 0;  // draft tokens: of n_generated, and those that were not what came

    template <typename Visit> static constexpr void fields(Visit && field) {
        field("n_prompt", &Usage::n_prompt);
        field("n_cached", &Usage::n_cached);
        field("n_generated", &Usage::n_generated);
        field("n_accepted", &Usage::n_accepted);
        field("n_rejected", &Usage::n_rejected);
    }
};

struct Timings {  // milliseconds since submit, monotonic clock; < 0 = not reached
    double queue_ms = -1;  // left the queue
    double prefill_ms = -1;  // prompt in the cache
    double first_token_ms = -1;
    double total_ms = -1;  // until the event that says so

    template <typename Visit> static constexpr void fields(Visit && field) {
        field("queue_ms", &Timings::queue_ms);
        field("prefill_ms", &Timings::prefill_ms);
        field("first_token_ms", &Timings::first_token_ms);
        field("total_ms", &Timings::total_ms);
    }
};

struct TokenLogprob {
    Token token = 0;
    float logprob = 0;
    int32_t rank = 0;  // 1 = the most likely; of equals the one with the smaller id comes first
    std::string bytes;  // the token's own bytes: maybe half a character
    std::vector<TokenLogprob> top;

    template <typename Visit> static constexpr void fields(Visit && field) {
        field("token", &TokenLogprob::token);
        field("logprob", &TokenLogprob::logprob);
        field("rank", &TokenLogprob::rank);
        field("bytes", &TokenLogprob::bytes, RawBytes{});
        field("top", &TokenLogprob::top);
    }
};

enum class EventKind : uint8_t {
    progress,  // id 0: the load, `progress` 0..1. Any other id: prefill, n_prompt tokens in `usage` and `progress` 0..1
    loaded,  // id 0, once: info() is valid from here on
    text,  // whole UTF-8 that is decided: no part of a possible stop string
    finished,  // last event of a request that ended well; may carry the last text
    embedding,  // last event of an embed request (the vector) or of a rank request (the scores, one per label)
    error,  // last event of a request that failed (`code`, `text` = message). id 0: the load failed
};
constexpr auto names(EventKind) {
    return std::array{"progress", "loaded", "text", "finished", "embedding", "error"};
}

struct Event {
    RequestId id = 0;
    EventKind kind = EventKind::text;
    std::string text;
    std::string mark;  // text: the control token that follows it, one of the request's marks; "" = none
    std::string code;  // error: as Error::code
    std::map<std::string, std::string> details;  // error
    FinishReason reason = FinishReason::none;
    float progress = 0;
    Usage usage;
    Timings timings;
    std::vector<TokenLogprob> logprobs;  // of the tokens whose text this event completes
    // Where asked for: the tokens whose text this event completes, and once those of the prompt. All events of an
    // answer together have every token that it counts.
    std::vector<Token> tokens, prompt_tokens;
    std::vector<TokenLogprob> prompt_logprobs;  // once, where asked for; of its first token the logprob means nothing
    std::string stop;  // finished by a stop string: that one
    Token stop_token = -1;  // finished by one of stop_token_ids: that one
    std::vector<float> embedding;
    std::shared_ptr<Outbox> outbox;  // where it is to be delivered; null: the engine's own

    template <typename Visit> static constexpr void fields(Visit && field) {
        field("id", &Event::id);
        field("kind", &Event::kind);
        field("text", &Event::text);
        field("mark", &Event::mark);
        field("code", &Event::code);
        field("details", &Event::details);
        field("reason", &Event::reason);
        field("progress", &Event::progress);
        field("usage", &Event::usage);
        field("timings", &Event::timings);
        field("logprobs", &Event::logprobs);
        field("prompt_logprobs", &Event::prompt_logprobs);
        field("tokens", &Event::tokens);
        field("prompt_tokens", &Event::prompt_tokens);
        field("stop", &Event::stop);
        field("stop_token", &Event::stop_token);
        field("embedding", &Event::embedding);
    }
};

enum class Device : uint8_t { automatic, cpu, gpu };
constexpr auto names(Device) {
    return std::array{"auto", "cpu", "gpu"};
}

enum class CacheType : uint8_t { f16, q8_0 };
constexpr auto names(CacheType) {
    return std::array{"f16", "q8_0"};
}

// automatic: where an answer's bits do not depend on it, as far as it pays. off: one token a pass. always: also where
// it costs more than it gains, for tests.
enum class Speculate : uint8_t { automatic, off, always };
constexpr auto names(Speculate) {
    return std::array{"auto", "off", "always"};
}

struct EngineOptions {
    Device device = Device::automatic;
    int32_t n_gpu_layers = -1;  // -1 = all that the device choice allows
    int32_t n_ctx = 0;  // tokens per stream; 0 = the model's own, cut to what fits in memory
    int32_t max_streams = 4;  // sequences in one batch
    int32_t max_queue = 512;  // requests waiting beyond those; one more is refused
    int32_t n_threads = 0;  // 0 = what this process may really use (affinity, cgroup quota)
    int32_t n_batch = 512;  // tokens per prefill step
    CacheType cache_type = CacheType::f16;
    bool flash_attention = true;
    bool mmap = true;
    bool kernels = true;  // our compute kernels; false = ggml's own
    Speculate speculate = Speculate::automatic;
    std::string draft_model;  // file of a smaller model that guesses; empty = none
    // Host memory for prefixes beyond the running streams; -1 = as much as the model itself takes
    int64_t prefix_cache_bytes = -1;
    bool check_tensors = false;  // read every weight and refuse NaN and infinity
    bool embeddings = true;  // allow embed requests
    std::vector<std::pair<std::string, float>> lora;  // adapter file, scale
    std::string guidance;  // llguidance's shared library; empty = no answer can be held to a grammar

    template <typename Visit> static constexpr void fields(Visit && field) {
        field("device", &EngineOptions::device);
        field("n_gpu_layers", &EngineOptions::n_gpu_layers, Range{-1, 10000});
        field("n_ctx", &EngineOptions::n_ctx, Range{0, 1 << 24});
        field("max_streams", &EngineOptions::max_streams, Range{1, 64});
        field("max_queue", &EngineOptions::max_queue, Range{0, 100000});
        field("n_threads", &EngineOptions::n_threads, Range{0, 512});
        field("n_batch", &EngineOptions::n_batch, Range{32, 8192});
        field("cache_type", &EngineOptions::cache_type);
        field("flash_attention", &EngineOptions::flash_attention);
        field("mmap", &EngineOptions::mmap);
        field("kernels", &EngineOptions::kernels);
        field("speculate", &EngineOptions::speculate);
        field("draft_model", &EngineOptions::draft_model, PathBytes{});
        field("prefix_cache_bytes", &EngineOptions::prefix_cache_bytes, Range{-1, 1LL << 44});
        field("check_tensors", &EngineOptions::check_tensors);
        field("embeddings", &EngineOptions::embeddings);
        field("lora", &EngineOptions::lora, PathBytes{});
        field("guidance", &EngineOptions::guidance, PathBytes{});
    }
};

struct DeviceInfo {
    std::string name, description;
    bool gpu = false;
    uint64_t memory_bytes = 0, free_bytes = 0;  // free: as the driver says; some say all

    template <typename Visit> static constexpr void fields(Visit && field) {
        field("name", &DeviceInfo::name);
        field("description", &DeviceInfo::description);
        field("gpu", &DeviceInfo::gpu);
        field("memory_bytes", &DeviceInfo::memory_bytes);
        field("free_bytes", &DeviceInfo::free_bytes);
    }
};

struct ModelInfo {
    std::string path, architecture, description, quantization, chat_template, bos_text, eos_text;
    // With {query} and {document}; "" where a pair is framed by the vocabulary's own tokens.
    std::string rerank_template;
    std::vector<Task> tasks;  // what this model can be asked for
    std::map<std::string, std::string> special_tokens;  // by the names that chat templates use: "bos_token", ...
    std::map<std::string, Token> control_tokens;  // by their texts; named ones too
    // Where the vocabulary can fill in the middle of a text: "prefix", "suffix", "middle", and what it has of "pad",
    // "repo" and "separator" (of files).
    std::map<std::string, Token> infill_tokens;
    std::vector<float> lora_scales;  // of the adapters, as they were loaded
    std::vector<std::string> labels;  // of a rank model's scores, where it names them
    uint64_t n_params = 0, file_bytes = 0, weights_bytes = 0;
    uint64_t cache_bytes = 0;  // of the running streams, when all are full
    uint64_t prefix_cache_bytes = 0;  // of prefixes kept beyond them, at most
    uint64_t compute_bytes = 0;  // buffers of a pass
    uint64_t draft_model_bytes = 0;  // weights and cache
    int32_t n_ctx = 0, n_ctx_train = 0, n_vocab = 0, n_embd = 0, n_layer = 0;
    int32_t longest_piece = 0;  // bytes: no token of the vocabulary is longer
    int32_t max_streams = 0, n_threads = 0, n_gpu_layers = 0, n_batch = 0;
    bool add_bos = false, flash_attention = false;
    std::string cache_type, kernels;  // kernels: the instruction set in use, or "off"
    std::string placement;  // in words: which layers run on a GPU, and why not more
    std::string speculation;  // in words: where drafts come from, or why there are none
    bool row_invariant = false;  // an answer's bits do not depend on what runs beside it, nor on what was cached
    std::string build;  // pinned llama.cpp build id
    int64_t process_id = 0;  // of the process that computes
    std::string sandbox;  // what keeps that process from more than computing: "seccomp, landlock"; "" = nothing
    double load_ms = 0;
    std::vector<DeviceInfo> devices;  // that the model uses: the CPU, then GPUs
    std::map<std::string, std::string> metadata;  // scalar GGUF keys

    template <typename Visit> static constexpr void fields(Visit && field) {
        field("path", &ModelInfo::path, PathBytes{});
        field("architecture", &ModelInfo::architecture);
        field("description", &ModelInfo::description);
        field("quantization", &ModelInfo::quantization);
        field("chat_template", &ModelInfo::chat_template);
        field("rerank_template", &ModelInfo::rerank_template);
        field("tasks", &ModelInfo::tasks);
        field("labels", &ModelInfo::labels);
        field("bos_text", &ModelInfo::bos_text);
        field("eos_text", &ModelInfo::eos_text);
        field("special_tokens", &ModelInfo::special_tokens);
        field("control_tokens", &ModelInfo::control_tokens);
        field("infill_tokens", &ModelInfo::infill_tokens);
        field("lora_scales", &ModelInfo::lora_scales);
        field("longest_piece", &ModelInfo::longest_piece);
        field("n_params", &ModelInfo::n_params);
        field("file_bytes", &ModelInfo::file_bytes);
        field("weights_bytes", &ModelInfo::weights_bytes);
        field("cache_bytes", &ModelInfo::cache_bytes);
        field("prefix_cache_bytes", &ModelInfo::prefix_cache_bytes);
        field("compute_bytes", &ModelInfo::compute_bytes);
        field("draft_model_bytes", &ModelInfo::draft_model_bytes);
        field("n_ctx", &ModelInfo::n_ctx);
        field("n_ctx_train", &ModelInfo::n_ctx_train);
        field("n_vocab", &ModelInfo::n_vocab);
        field("n_embd", &ModelInfo::n_embd);
        field("n_layer", &ModelInfo::n_layer);
        field("max_streams", &ModelInfo::max_streams);
        field("n_threads", &ModelInfo::n_threads);
        field("n_gpu_layers", &ModelInfo::n_gpu_layers);
        field("n_batch", &ModelInfo::n_batch);
        field("add_bos", &ModelInfo::add_bos);
        field("flash_attention", &ModelInfo::flash_attention);
        field("cache_type", &ModelInfo::cache_type);
        field("kernels", &ModelInfo::kernels);
        field("placement", &ModelInfo::placement);
        field("speculation", &ModelInfo::speculation);
        field("row_invariant", &ModelInfo::row_invariant);
        field("build", &ModelInfo::build);
        field("process_id", &ModelInfo::process_id);
        field("sandbox", &ModelInfo::sandbox);
        field("load_ms", &ModelInfo::load_ms);
        field("devices", &ModelInfo::devices);
        field("metadata", &ModelInfo::metadata);
    }
};

// What a model would take, in bytes, with all its streams in use.
struct MemoryEstimate {
    int32_t n_ctx = 0;  // tokens of each stream; of a model that only embeds, of its longest text
    uint64_t weights_bytes = 0;
    uint64_t cache_bytes = 0;  // KV cache
    uint64_t compute_bytes = 0;  // buffers of a pass
    uint64_t other_bytes = 0;  // the vocabulary, the graph, the program
    uint64_t total_bytes = 0;  // all of these
    uint64_t prefix_cache_bytes = 0;  // beyond them, at most, once prompts were answered
    uint64_t available_bytes = 0;  // that this process may still take
    int32_t max_n_ctx = 0;  // what fits
    bool fits = false;

    template <typename Visit> static constexpr void fields(Visit && field) {
        field("n_ctx", &MemoryEstimate::n_ctx);
        field("weights_bytes", &MemoryEstimate::weights_bytes);
        field("cache_bytes", &MemoryEstimate::cache_bytes);
        field("compute_bytes", &MemoryEstimate::compute_bytes);
        field("other_bytes", &MemoryEstimate::other_bytes);
        field("total_bytes", &MemoryEstimate::total_bytes);
        field("prefix_cache_bytes", &MemoryEstimate::prefix_cache_bytes);
        field("available_bytes", &MemoryEstimate::available_bytes);
        field("max_n_ctx", &MemoryEstimate::max_n_ctx);
        field("fits", &MemoryEstimate::fits);
    }
};

struct Stats {
    int32_t n_running = 0, n_waiting = 0;
    uint64_t n_requests = 0, n_finished = 0, n_cancelled = 0, n_failed = 0;
    uint64_t n_prompt_tokens = 0, n_cached_tokens = 0, n_generated_tokens = 0, n_steps = 0;
    uint64_t n_accepted_tokens = 0, n_rejected_tokens = 0;  // of drafts
    double prompt_seconds = 0, generation_seconds = 0;  // of all answers that have ended, those side by side added up
    int32_t n_cells = 0, n_cells_used = 0;  // KV cache, tokens; used = by running streams and held prefixes
    uint64_t prefix_cache_bytes = 0;  // host copies
    std::map<std::string, uint64_t> device_bytes;  // held of each GPU, by its name

    template <typename Visit> static constexpr void fields(Visit && field) {
        field("n_running", &Stats::n_running);
        field("n_waiting", &Stats::n_waiting);
        field("n_requests", &Stats::n_requests);
        field("n_finished", &Stats::n_finished);
        field("n_cancelled", &Stats::n_cancelled);
        field("n_failed", &Stats::n_failed);
        field("n_prompt_tokens", &Stats::n_prompt_tokens);
        field("n_cached_tokens", &Stats::n_cached_tokens);
        field("n_generated_tokens", &Stats::n_generated_tokens);
        field("n_steps", &Stats::n_steps);
        field("n_accepted_tokens", &Stats::n_accepted_tokens);
        field("n_rejected_tokens", &Stats::n_rejected_tokens);
        field("prompt_seconds", &Stats::prompt_seconds);
        field("generation_seconds", &Stats::generation_seconds);
        field("n_cells", &Stats::n_cells);
        field("n_cells_used", &Stats::n_cells_used);
        field("prefix_cache_bytes", &Stats::prefix_cache_bytes);
        field("device_bytes", &Stats::device_bytes);
    }
};

}  // namespace pgl
