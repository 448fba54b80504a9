#include "engine/engine.h"

#include "engine/loop.h"
#include "llama/model.h"
#include "platform/machine.h"
#include "ranges.h"

#include <algorithm>
#include <cmath>
#include <system_error>
#include <utility>

namespace pgl {
namespace {

void check_sampling(const SamplingParams & params, int32_t n_vocab) {
    check_ranges(params);
    for (const auto & [token, bias] : params.logit_bias) {
        check_range("logit_bias token", token, {0, n_vocab - 1.0});
        if (std::isnan(bias)) {
            throw Error("invalid_request", "logit_bias must be a number, got nan",
                        {{"field", "logit_bias"}, {"allowed", "a number"}});
        }
    }
}

// The most bytes, up to `limit`, after which a character of this UTF-8 text begins.
size_t whole_characters(const std::string & text, size_t limit) {
    while (limit > 0 && (static_cast<unsigned char>(text[limit]) & 0xC0) == 0x80) {
        --limit;
    }
    return limit;
}

size_t n_bytes(const std::vector<Span> & spans) {
    size_t n = 0;
    for (const Span & span : spans) {
        n += span.text.size();
    }
    return n;
}

// Tokenizes on a stack that is large enough. The caller may leave before the end (`poll`); the work owns all it needs.
template <typename Work>  // Work(spans) -> tokens
std::vector<Token> on_large_stack(std::vector<Span> spans, const std::shared_ptr<log::Queue> & log,
                                  const machine::Poll & poll, Work work) {
    const uint64_t stack_bytes = Tokenizer::stack_bytes(n_bytes(spans));
    if (stack_bytes == 0) {
        const log::Scope scope(log);
        return work(spans);
    }
    const auto tokens = std::make_shared<std::vector<Token>>();
    machine::run_with_stack(
        stack_bytes,
        [tokens, log, work = std::move(work), spans = std::move(spans)] {
            const log::Scope scope(log);
            *tokens = work(spans);
        },
        poll);
    return std::move(*tokens);
}

std::vector<Token> tokens_for(Task task, const std::vector<Span> & spans, const Tokenizer & tokenizer) {
    if (task == Task::generate) {
        return tokenizer.tokenize(spans, true);
    }
    if (task == Task::embed) {
        std::string text;
        for (const Span & span : spans) {
            text += span.text;
        }
        return tokenizer.tokenize_document(text);
    }
    const bool filled_in = std::any_of(spans.begin(), spans.end(), [](const Span & span) { return span.trusted; });
    if (filled_in || spans.size() != 2) {
        return tokenizer.tokenize(spans, false);
    }
    return tokenizer.tokenize_pair(spans[0].text, spans[1].text);
}

// What the sampler must know of the request's texts in tokens. Tokens of a text are those it has at the beginning of an
// answer and those it has after a space.
SamplerTokens sampler_tokens(const Request & request, const Tokenizer & tokenizer) {
    SamplerTokens tokens;
    for (const std::string & word : request.sampling.bad_words) {
        for (const std::string & text : {word, ' ' + word}) {
            std::vector<Token> bad = tokenizer.tokenize({{text, false}}, false);
            if (!bad.empty()) {
                tokens.bad.push_back(std::move(bad));
            }
        }
    }
    if (request.min_tokens > 0) {
        tokens.ends = request.stop_token_ids;
        for (Token token = 0; token < tokenizer.n_vocab() && !request.ignore_eos; ++token) {
            if (tokenizer.is_end(token)) {
                tokens.ends.push_back(token);
            }
        }
    }
    const std::vector<std::string> & breakers = request.sampling.dry_sequence_breakers;
    if (request.sampling.dry_multiplier > 0 && !breakers.empty()) {
        for (Token token = 0; token < tokenizer.n_vocab(); ++token) {
            const std::string bytes = tokenizer.bytes(token);
            const auto within = [&](const std::string & text) { return bytes.find(text) != std::string::npos; };
            if (std::any_of(breakers.begin(), breakers.end(), within)) {
                tokens.breakers.insert(token);
            }
        }
    }
    if (const ThoughtLimit & thought = request.thought; thought.max_tokens >= 0) {
        tokens.thought_ending = tokenizer.tokenize({{thought.closing + thought.answer, true}}, false);
    }
    return tokens;
}

// The scales of all adapters of the load, for a request that names some.
AdapterScales adapter_scales(const Request & request, const AdapterScales & loaded) {
    if (!request.lora) {
        return loaded;
    }
    AdapterScales scales(loaded.size(), 0.0f);
    std::vector<bool> named(loaded.size(), false);
    for (const auto & [index, scale] : *request.lora) {
        const std::string given = std::to_string(index);
        const auto refuse = [&](const std::string & why) {
            throw Error("invalid_request", "lora: " + why, {{"field", "lora"}, {"value", given}});
        };
        if (index < 0 || static_cast<size_t>(index) >= loaded.size()) {
            refuse("there is no adapter " + given + "; " + std::to_string(loaded.size()) + " were loaded");
        }
        if (!std::isfinite(scale)) {
            refuse("the scale of adapter " + given + " must be a finite number");
        }
        if (named[static_cast<size_t>(index)]) {
            refuse("adapter " + given + " is named twice");
        }
        named[static_cast<size_t>(index)] = true;
        scales[static_cast<size_t>(index)] = scale;
    }
    return scales;
}

std::string names_of(const std::vector<Task> & tasks) {
    std::string names;
    for (const Task task : tasks) {
        names += (names.empty() ? "" : ", ") + std::string(name_of(task));
    }
    return names.empty() ? "nothing" : names;
}

}  // namespace

Engine::Engine(std::string path, EngineOptions options)
    : process_id_(machine::process_id()), shared_(std::move(path), std::move(options)) {
    const auto body = [this] {
        Loop(shared_).run();
        {
            const std::lock_guard lock(shared_.mutex);
            shared_.ended = true;
        }
        shared_.outboxes.close_all();
        shared_.loading->close();
        shared_.bell.close();
    };
    try {
        thread_ = std::thread(body);
    } catch (const std::system_error &) {
        throw Error("out_of_memory",
                    "no thread could be started; this process's limits on threads or memory are reached");
    }
}

Engine::~Engine() {
    close();
}

void Engine::Release::operator()(Engine * engine) const {
    // A forked child has the handles and not the threads: even a condition variable's destructor would wait for ever.
    if (engine->process_id_ == machine::process_id()) {
        delete engine;
    }
}

void Engine::close() {
    check_process(process_id_);
    {
        const std::lock_guard lock(shared_.mutex);
        shared_.closing = true;
        shared_.abort.requested = true;
    }
    shared_.wake_engine.notify_all();
    const std::lock_guard once(close_mutex_);
    if (thread_.joinable()) {
        thread_.join();
    }
}

std::shared_ptr<Model> Engine::loaded_model() const {
    check_process(process_id_);
    const std::lock_guard lock(shared_.mutex);
    if (shared_.closing || shared_.ended || shared_.ended_by) {
        throw shared_.why_ended();
    }
    if (!shared_.model) {
        throw Error("invalid_model", "the model is not loaded yet");
    }
    return shared_.model;
}

std::shared_ptr<const Grammars> Engine::grammars(const std::shared_ptr<Model> & model) {
    const std::lock_guard once(grammars_mutex_);
    {
        const std::lock_guard lock(shared_.mutex);
        if (shared_.grammars) {
            return shared_.grammars;
        }
    }
    if (shared_.options.guidance.empty()) {
        throw Error(
            "missing_library",
            "answers are held to a grammar by the package llguidance, which is not installed: pip install llguidance");
    }
    auto made = Grammars::open(shared_.options.guidance, {model, &model->tokenizer()});
    const std::lock_guard lock(shared_.mutex);
    if (shared_.closing || shared_.ended) {
        throw shared_.why_ended();
    }
    shared_.grammars = made;
    return made;
}

void Engine::compile(const Constraint & constraint) {
    grammars(loaded_model())->compiled(constraint);
}

RequestId Engine::submit(Request request, const machine::Poll & poll) {
    const std::shared_ptr<Model> model = loaded_model();
    const ModelInfo & info = model->info();
    const Task task = request.task;
    const bool generate = task == Task::generate;
    if (!model->can(task)) {
        throw Error("invalid_request",
                    std::string("this model cannot ") + name_of(task) + "; it can " + names_of(info.tasks),
                    {{"field", "model"}, {"tasks", names_of(info.tasks)}});
    }
    check_ranges(request);
    check_ranges(request.thought);
    check_sampling(request.sampling, info.n_vocab);
    AdapterScales adapters = adapter_scales(request, info.lora_scales);
    if (!generate && adapters != info.lora_scales) {
        throw Error("invalid_request", "lora: only what generates can choose its adapters", {{"field", "lora"}});
    }
    if (!request.outbox) {
        throw Error("invalid_request", "a request needs an outbox for its events");
    }
    if (request.max_tokens < 0) {
        throw Error("invalid_request", "max_tokens must be at least 0, got " + std::to_string(request.max_tokens));
    }
    const std::pair<const char *, const std::vector<Token> *> lists[] = {
        {"replay", &request.replay},
        {"prompt", &request.prompt_tokens},
        {"stop_token_ids", &request.stop_token_ids},
        {"allowed_token_ids", &request.sampling.allowed_token_ids},
        {"logprob_token_ids", &request.sampling.logprob_token_ids},
    };
    for (const auto & [name, tokens] : lists) {
        for (const Token token : *tokens) {
            check_range(name, token, {0, info.n_vocab - 1.0});
        }
    }
    if (!request.replay.empty() && !request.constraint.kind.empty()) {
        throw Error("invalid_request", "replay: an answer that is held to a grammar cannot be replayed");
    }
    for (const std::string & mark : request.marks) {
        if (info.control_tokens.count(mark) == 0) {
            throw Error("invalid_request", "marks: " + mark + " is no control token of this model",
                        {{"field", "marks"}, {"value", mark}});
        }
    }

    // A text that cannot fit is refused before it costs a tokenization: no token is longer than the longest piece.
    const int32_t n_ctx = generate ? info.n_ctx : model->max_pooled_tokens();
    const auto refuse = [&](int64_t n_prompt, const char * relation) {
        throw Error("context_length_exceeded",
                    "the prompt has " + std::string(relation) + std::to_string(n_prompt) + " tokens, and the " +
                        (generate ? "context" : "model's") + " length is " + std::to_string(n_ctx) +
                        (generate ? " with room for at least one token of answer" : ""),
                    {{"n_prompt", std::to_string(n_prompt)}, {"n_ctx", std::to_string(n_ctx)}});
    };
    const size_t least = n_bytes(request.prompt) / model->tokenizer().longest_piece();
    if (least > static_cast<size_t>(n_ctx) && request.keep_tokens == 0) {
        refuse(static_cast<int64_t>(least), "at least ");
    }
    std::vector<Token> prompt = std::exchange(request.prompt_tokens, {});
    if (prompt.empty()) {
        prompt = on_large_stack(
            std::move(request.prompt), shared_.log, poll,
            [model, task](const std::vector<Span> & spans) { return tokens_for(task, spans, model->tokenizer()); });
    }
    if (const auto n = static_cast<size_t>(request.keep_tokens); n > 0 && prompt.size() > n) {
        const auto n_cut = static_cast<std::ptrdiff_t>(prompt.size() - n);
        const auto begin = request.keep_first ? prompt.end() - n_cut : prompt.begin();
        prompt.erase(begin, begin + n_cut);
    }
    if (prompt.empty()) {
        throw Error("invalid_request", "the prompt is empty");
    }
    const auto n_prompt = static_cast<int32_t>(prompt.size());
    if (generate ? n_prompt >= n_ctx : n_prompt > n_ctx) {
        refuse(n_prompt, "");
    }
    request.prompt.clear();
    std::unique_ptr<Drafter> drafter;
    if (generate && model->speculates(adapters)) {
        // No answer is longer than the context, so no more of a prediction can come true.
        const size_t most = static_cast<size_t>(n_ctx) * model->tokenizer().longest_piece();
        if (request.prediction.size() > most) {
            request.prediction.resize(whole_characters(request.prediction, most));
        }
        std::vector<Token> prediction;
        if (!request.prediction.empty()) {
            prediction = on_large_stack(
                {{std::move(request.prediction), false}}, shared_.log, poll,
                [model](const std::vector<Span> & spans) { return model->tokenizer().tokenize(spans, false); });
        }
        drafter = std::make_unique<Drafter>(prompt, prediction);
    }
    SamplerTokens tokens = sampler_tokens(request, model->tokenizer());
    request.prediction.clear();
    std::unique_ptr<Guide> guide;
    if (generate && !request.constraint.kind.empty()) {
        guide = grammars(model)->guide(request.constraint);
    }

    const std::lock_guard lock(shared_.mutex);
    if (shared_.closing || shared_.ended) {
        throw shared_.why_ended();
    }
    if (shared_.n_live >= shared_.options.max_streams + shared_.options.max_queue) {
        throw Error("queue_full",
                    "the queue is full: " + std::to_string(shared_.options.max_streams) + " streams run and " +
                        std::to_string(shared_.options.max_queue) + " requests wait",
                    {{"max_streams", std::to_string(shared_.options.max_streams)},
                     {"max_queue", std::to_string(shared_.options.max_queue)}});
    }
    const RequestId id = request.id != 0 ? request.id : ++shared_.last_id;
    shared_.inbox.push_back(std::make_unique<Sequence>(id, std::move(request), std::move(prompt), n_ctx - n_prompt,
                                                       info.n_vocab, std::move(guide), std::move(drafter),
                                                       std::move(tokens), std::move(adapters)));
    ++shared_.n_live;
    ++shared_.stats.n_requests;
    shared_.wake_engine.notify_one();
    return id;
}

void Engine::cancel(RequestId id) {
    check_process(process_id_);
    const std::lock_guard lock(shared_.mutex);
    shared_.cancelled.insert(id);
    if (shared_.computing.erase(id) > 0 && shared_.computing.empty()) {
        shared_.abort.requested = true;
    }
    shared_.wake_engine.notify_one();
}

std::shared_ptr<Outbox> Engine::outbox(bool quiet, bool rings) {
    check_process(process_id_);
    return shared_.outboxes.make(quiet, rings);
}

std::shared_ptr<Outbox> Engine::forwarding_outbox(Outbox::Sink sink) {
    check_process(process_id_);
    std::shared_ptr<Outbox> outbox = Outbox::make_forwarding(std::move(sink));
    shared_.outboxes.add(outbox);
    return outbox;
}

std::vector<OutboxId> Engine::listen(int32_t timeout_ms) {
    check_process(process_id_);
    return shared_.bell.listen(timeout_ms);
}

std::vector<Token> Engine::tokenize(std::vector<Span> spans, bool add_bos, const machine::Poll & poll) const {
    return on_large_stack(std::move(spans), shared_.log, poll,
                          [model = loaded_model(), add_bos](const std::vector<Span> & text) {
                              return model->tokenizer().tokenize(text, add_bos);
                          });
}

std::string Engine::detokenize(const std::vector<Token> & tokens, bool special) const {
    const std::shared_ptr<Model> model = loaded_model();
    std::string text;
    for (const Token token : tokens) {
        const std::string bytes = model->tokenizer().bytes(token);
        text += bytes.empty() && special ? model->tokenizer().literal(token) : bytes;
    }
    return text;
}

Error Engine::why_ended() const {
    const std::lock_guard lock(shared_.mutex);
    return shared_.why_ended();
}

ModelInfo Engine::info() const {
    return loaded_model()->info();
}

Stats Engine::stats() const {
    check_process(process_id_);
    const std::lock_guard lock(shared_.mutex);
    return shared_.stats;
}

}  // namespace pgl
