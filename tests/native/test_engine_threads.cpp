// An engine, in this process and in one of its own, under many threads: those that ask, cancel, look and close, all at
// once. Every request ends once. Under ThreadSanitizer no two of them touch the same memory at the same time.
// Arguments: how many requests each engine answers before it is closed, and a model file in place of a tiny one.
#include "check.h"
#include "engine/engine.h"
#include "gguf_builder.h"
#include "worker/remote_engine.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>

#if !defined(_WIN32)
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

using namespace pgl;

namespace {

std::mutex checking;   // check.h knows of one thread

void expect(bool holds, const std::string & what) {
    const std::lock_guard lock(checking);
    check::context = what;
    CHECK(holds);
}

// Weights that are no zeros: a scale of 1/32 or so in front of random numbers. All of them of types that our kernels
// take, so that there are drafts, the number of tokens among them; and heads as wide as a block of a q8_0 cache.
std::string with_weights(builder::Gguf model) {
    model.set("llama.attention.head_count", 2u);
    model.set("llama.attention.head_count_kv", 1u);
    model.set("llama.rope.dimension_count", 32u);
    std::vector<std::string> tokens = {"<unk>", "<s>", "</s>", "a", "b", "ab", "\xE2\x96\x81"};
    std::vector<int32_t> types = {2, 3, 3, 1, 1, 1, 1};
    for (const std::string & token : builder::byte_tokens()) {
        tokens.push_back(token);
        types.push_back(6);
    }
    while (tokens.size() < 288) {
        tokens.push_back("c" + std::to_string(tokens.size()));
        types.push_back(1);
    }
    model.set("tokenizer.ggml.tokens", builder::string, tokens);
    model.set("tokenizer.ggml.scores", builder::f32, std::vector<float>(tokens.size(), -1.0f));
    model.set("tokenizer.ggml.token_type", builder::i32, types);
    model.tensor("token_embd.weight").ne[1] = tokens.size();
    for (builder::Tensor & tensor : model.tensors) {
        tensor.type = tensor.ne.size() == 1 ? 0 : 8;
    }
    std::string file = model.file();
    std::mt19937 bits(1);
    size_t at = (model.header().size() + model.alignment - 1) / model.alignment * model.alignment;
    for (const builder::Tensor & tensor : model.tensors) {
        const auto [n_block, block_bytes] = builder::block(tensor.type);
        uint64_t n = 1;
        for (const uint64_t length : tensor.ne) {
            n *= length;
        }
        const size_t n_bytes = n / n_block * block_bytes;
        for (size_t i = 0; i < n_bytes; i += block_bytes) {
            if (tensor.type == 0) {
                const float one = 1;
                std::memcpy(&file[at + i], &one, sizeof one);
                continue;
            }
            for (size_t k = 2; k < block_bytes; ++k) {
                file[at + i + k] = static_cast<char>(bits());
            }
            const auto scale = static_cast<uint16_t>(0x2800 | (bits() & 0x80FF));   // a half float
            std::memcpy(&file[at + i], &scale, sizeof scale);
        }
        at += (n_bytes + model.alignment - 1) / model.alignment * model.alignment;
    }
    return file;
}

Request some_request(std::mt19937 & draw, const std::shared_ptr<Outbox> & outbox) {
    static const char * const prompts[] = {"ab", "a b ab b a", "aaaaaaaaaaaaaaaaaaaa", "a b ab b a and then another"};
    Request request;
    request.outbox = outbox;
    request.prompt = {{prompts[draw() % 4], true}, {prompts[draw() % 4], false}};
    request.task = draw() % 8 == 0 ? Task::embed : Task::generate;
    request.max_tokens = static_cast<int32_t>(draw() % 24);
    request.ignore_eos = draw() % 2 == 0;
    request.sampling.temperature = draw() % 2 == 0 ? 0.0f : 1.0f;
    request.sampling.seed = draw();
    if (draw() % 3 == 0) {
        request.sampling.n_logprobs = 2;
        request.n_prompt_logprobs = 1;
    }
    if (draw() % 3 == 0) {
        request.sampling.repetition_penalty = 1.1f;
        request.sampling.dry_multiplier = 0.8f;
    }
    if (draw() % 3 == 0) {
        request.stop = {"ab", "b"};
    }
    if (draw() % 3 == 0) {
        request.prediction = "a b ab b a and then another";
    }
    return request;
}

struct Tally {
    std::atomic<size_t> accepted{0}, ended{0};
    std::mutex mutex;
    std::condition_variable changed;

    void end_one() {
        ++ended;
        const std::lock_guard lock(mutex);
        changed.notify_all();
    }
    void wait_for(size_t n) {
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return ended >= n; });
    }
};

// Whether it was accepted. `closed`: the engine is.
template <typename E> RequestId submit(E & engine, Request request, Tally & tally, bool & closed) {
    try {
        const RequestId id = engine.submit(std::move(request));
        ++tally.accepted;
        return id;
    } catch (const Error & e) {
        closed = e.code == "engine_closed";
        expect(closed || e.code == "queue_full", e.code + ": " + e.what());
        return 0;
    }
}

void note(const std::vector<Event> & events, std::set<RequestId> & open, Tally & tally) {
    for (const Event & event : events) {
        expect(open.count(event.id) == 1, "an event of a request that is open");
        if (event.kind == EventKind::error) {
            expect(event.code == "cancelled" || event.code == "engine_closed", event.code + ": " + event.text);
        }
        if (is_last(event)) {
            open.erase(event.id);
            tally.end_one();
        }
    }
}

// Asks, reads and cancels, until the engine is closed.
template <typename E> void ask(E & engine, uint32_t seed, Tally & tally) {
    std::mt19937 draw(seed);
    for (bool closed = false; !closed;) {
        std::set<RequestId> open;
        try {
            const std::shared_ptr<Outbox> outbox = engine.outbox(draw() % 2 == 0, false);
            for (size_t n = 1 + draw() % 3; n > 0 && !closed; --n) {
                if (const RequestId id = submit(engine, some_request(draw, outbox), tally, closed); id != 0) {
                    open.insert(id);
                }
            }
            while (!open.empty()) {
                if (draw() % 4 == 0) {
                    engine.cancel(*open.begin());
                }
                note(outbox->wait(1000), open, tally);
            }
        } catch (const Error & e) {
            closed = e.code == "engine_closed";
            expect(closed && open.empty(), e.code + ": " + e.what());
        }
    }
}

// As an event loop: it waits for the bell, and drains who has news.
template <typename E> void ask_by_bell(E & engine, uint32_t seed, Tally & tally) {
    std::mt19937 draw(seed);
    std::set<RequestId> open;
    try {
        std::map<OutboxId, std::shared_ptr<Outbox>> readers;
        for (bool closed = false; !closed || !open.empty();) {
            while (open.size() < 4 && !closed) {
                const std::shared_ptr<Outbox> outbox = engine.outbox(false, true);
                if (const RequestId id = submit(engine, some_request(draw, outbox), tally, closed); id != 0) {
                    open.insert(id);
                    readers[outbox->id()] = outbox;
                } else {
                    break;
                }
            }
            for (const OutboxId id : engine.listen(100)) {
                const auto reader = readers.find(id);
                expect(reader != readers.end(), "a bell rings for a reader that is known");
                const size_t n_open = open.size();
                note(reader->second->drain(), open, tally);
                if (open.size() < n_open) {
                    readers.erase(reader);
                }
            }
        }
    } catch (const Error & e) {
        expect(e.code == "engine_closed" && open.empty(), e.code + ": " + e.what());
    }
}

template <typename E> void look(E & engine) {
    try {
        for (;;) {
            const Stats stats = engine.stats();
            expect(stats.n_finished + stats.n_cancelled + stats.n_failed <= stats.n_requests, "stats");
            expect(engine.info().n_ctx > 0, "info");
            const std::vector<Token> tokens = engine.tokenize({{"ab a", false}}, true);
            expect(!engine.detokenize(tokens, false).empty(), "detokenize");
            engine.drain_log();
            // After its end these do not throw, and the others do.
            engine.outbox(false, false);
        }
    } catch (const Error & e) {
        expect(e.code == "engine_closed", e.code + ": " + e.what());
    }
}

template <typename E> bool wait_for_load(E & engine) {
    try {
        for (;;) {
            for (const Event & event : engine.loading()->wait(1000)) {
                expect(event.kind != EventKind::error || event.code == "cancelled" || event.code == "engine_closed",
                       event.code + ": " + event.text);
                if (event.kind == EventKind::loaded || event.kind == EventKind::error) {
                    return event.kind == EventKind::loaded;
                }
            }
        }
    } catch (const Error & e) {
        expect(e.code == "engine_closed", e.code + ": " + e.what());
        return false;
    }
}

template <typename E> void storm(E & engine, size_t n_requests) {
    const bool is_loaded = wait_for_load(engine);
    expect(is_loaded, "it loads");
    if (!is_loaded) {
        return;
    }
    Tally tally;
    std::vector<std::thread> threads;
    for (uint32_t seed = 1; seed <= 3; ++seed) {
        threads.emplace_back([&, seed] { ask(engine, seed, tally); });
    }
    threads.emplace_back([&] { ask_by_bell(engine, 4, tally); });
    threads.emplace_back([&] { look(engine); });
    tally.wait_for(n_requests);
    for (int i = 0; i < 2; ++i) {
        threads.emplace_back([&] { engine.close(); });
    }
    for (std::thread & thread : threads) {
        thread.join();
    }
    const std::lock_guard lock(checking);
    CHECK_EQ(tally.ended.load(), tally.accepted.load());
    CHECK(tally.ended >= n_requests);
}

std::vector<EngineOptions> option_sets(const std::string & path) {
    std::vector<EngineOptions> sets(4);
    for (EngineOptions & options : sets) {
        options.device = Device::cpu;
        options.n_ctx = 128;
        options.n_threads = 2;
        options.max_queue = 16;
    }
    sets[1].kernels = false;
    sets[1].n_threads = 1;
    sets[1].mmap = false;
    sets[2].speculate = Speculate::always;
    sets[2].draft_model = path;
    sets[2].max_streams = 2;
    sets[3].max_streams = 16;
    sets[3].cache_type = CacheType::q8_0;
    sets[3].prefix_cache_bytes = 1 << 16;
    return sets;
}

#if !defined(_WIN32)

// The program of a worker, started as Python starts it.
class Worker {
  public:
    Worker() {
        int in[2], out[2], reason[2];
        for (int * ends : {in, out, reason}) {
            if (pipe2(ends, O_CLOEXEC) != 0) {
                std::perror("pipe2");
                std::exit(1);
            }
        }
        process_ = fork();
        if (process_ == 0) {
            dup2(in[0], 0);
            dup2(out[1], 1);
            dup2(reason[1], 2);
            execl(PGL_WORKER_PROGRAM, "polargrid-worker", static_cast<char *>(nullptr));
            _exit(127);
        }
        ::close(in[0]);
        ::close(out[1]);
        ::close(reason[1]);
        settings.process = process_;
        settings.in = in[1];
        settings.out = out[0];
        settings.reason = reason[0];
        settings.hang_ms = settings.silence_ms = settings.close_ms = 60'000;
    }
    ~Worker() {
        int status = 0;
        waitpid(process_, &status, 0);
        const std::lock_guard lock(checking);
        check::context = "the worker's exit status";
        CHECK_EQ(status, 0);
    }
    Worker(const Worker &) = delete;
    Worker & operator=(const Worker &) = delete;

    WorkerProcess settings;

  private:
    pid_t process_ = 0;
};

#endif

}  // namespace

int main(int argc, char ** argv) {
    const size_t n_requests = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 20;
    const builder::TempDir folder;
    const std::string tiny = folder.write("tiny.gguf", with_weights(builder::tiny_llama()));
    const std::string path = argc > 2 ? argv[2] : tiny;
    for (const EngineOptions & options : option_sets(path)) {
        {
            Engine engine(path, options);
            storm(engine, n_requests);
        }
        {
            Engine engine(path, options);   // closed while it loads
            std::thread cancel([&] { engine.cancel(0); });
            std::thread close([&] { engine.close(); });
            wait_for_load(engine);
            cancel.join();
            close.join();
        }
#if !defined(_WIN32)
        Worker worker;
        RemoteEngine engine(path, options, worker.settings);
        storm(engine, n_requests);
#endif
    }
    return check::result("engine threads");
}
