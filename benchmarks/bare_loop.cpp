// Bare loop: llama.cpp's own decode loop with nothing around it, what the engine's speed is measured against.
//
//   bare_loop MODEL.gguf N_CTX N_THREADS [KERNELS]     KERNELS: 1 = with our kernels (the default), 0 = ggml's own
//
// Every line on stdin, "N_PROMPT N_TOKENS", is one run: the model is loaded anew, the prompt computed in batches of
// 512, then N_TOKENS greedy tokens one llama_decode each. Every run prints one line of JSON:
//   {"prefill_ms": of the whole prompt, "token_ms": [one per token], "cpu_ms": CPU time of the run, load included}
// or {"error": message}, and the program goes on.
#include "bare_context.h"
#include "kernels/kernels.h"
#include "llama/devices.h"
#include "request.h"

#include <llama.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <exception>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

namespace {

struct Settings {
    std::string path;
    int32_t n_ctx = 0;       // tokens
    int32_t n_threads = 0;   // 0 = what this process may use
    bool kernels = true;
};

struct Times {
    double prefill_ms = 0;
    std::vector<double> token_ms;
};

// Throws pgl::Error.
Times run(const Settings & settings, int32_t n_prompt, int32_t n_tokens) {
    if (n_prompt < 1 || n_tokens < 1 || n_prompt + n_tokens > settings.n_ctx) {
        throw pgl::Error("invalid_request", "n_prompt and n_tokens must be at least 1 and fit n_ctx together");
    }
    pgl::kernels::set_enabled(settings.kernels);
    const BareContext bare = open_bare_context(settings.path, settings.n_threads, settings.n_ctx);
    llama_context * context = bare.context.get();
    const int32_t n_vocab = bare.n_vocab();
    using Clock = std::chrono::steady_clock;
    const auto ms_since = [](Clock::time_point start) {
        return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
    };
    std::vector<llama_token> prompt(static_cast<size_t>(n_prompt));
    for (size_t i = 0; i < prompt.size(); ++i) {
        prompt[i] = static_cast<llama_token>((i * 7919 + 17) % static_cast<size_t>(n_vocab));
    }
    const auto feed = [&](llama_token * tokens, int32_t n) {
        if (llama_decode(context, llama_batch_get_one(tokens, n)) != 0) {
            throw pgl::Error("internal_error", "llama_decode failed");
        }
        const float * logits = llama_get_logits_ith(context, -1);
        return static_cast<llama_token>(std::max_element(logits, logits + n_vocab) - logits);
    };
    Times times;
    llama_token next = 0;
    auto start = Clock::now();
    for (int32_t at = 0; at < n_prompt; at += kBatch) {
        next = feed(prompt.data() + at, std::min(kBatch, n_prompt - at));
    }
    times.prefill_ms = ms_since(start);
    for (int32_t i = 0; i < n_tokens; ++i) {
        start = Clock::now();
        next = feed(&next, 1);
        times.token_ms.push_back(ms_since(start));
    }
    return times;
}

// CPU time of this process, all its threads.
double cpu_ms() {
    return 1000.0 * static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
}

void print(const Times & times, double cpu) {
    std::printf(R"({"prefill_ms": %.6f, "token_ms": [)", times.prefill_ms);
    for (size_t i = 0; i < times.token_ms.size(); ++i) {
        std::printf("%s%.6f", i > 0 ? ", " : "", times.token_ms[i]);
    }
    std::printf("], \"cpu_ms\": %.3f}\n", cpu);
}

}  // namespace

int main(int argc, char ** argv) {
    if (argc != 4 && argc != 5) {
        std::fprintf(stderr, "usage: %s MODEL.gguf N_CTX N_THREADS [KERNELS]\n", argv[0]);
        return 2;
    }
    try {
        const Settings settings{argv[1], std::stoi(argv[2]), std::stoi(argv[3]), argc == 4 || argv[4][0] != '0'};
        pgl::initialise_backends();
        for (std::string line; std::getline(std::cin, line);) {
            int32_t n_prompt = 0, n_tokens = 0;
            std::istringstream(line) >> n_prompt >> n_tokens;
            const double before = cpu_ms();
            try {
                const Times times = run(settings, n_prompt, n_tokens);
                print(times, cpu_ms() - before);
            } catch (const pgl::Error & error) {   // our messages, which hold nothing that JSON would escape
                std::printf("{\"error\": \"%s\"}\n", error.what());
            }
            std::fflush(stdout);
        }
    } catch (const std::exception & error) {
        std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
        return 1;
    }
    return 0;
}
