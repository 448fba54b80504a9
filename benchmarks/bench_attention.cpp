// Attention against ggml's own op, one thread, in CPU time: bench_attention [isa] [f16|q8_0] [largest context]
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "attention_case.h"

using namespace attention_case;

namespace {

double cpu_seconds() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

/// One round of a prepared graph: seconds per run over about 20 ms.
double time_round(Graph & graph, bool ours) {
    hook().on = ours;
    double total = 0;
    int n = 0;
    while (total < 0.02) {
        const double begin = cpu_seconds();
        graph.run();
        total += cpu_seconds() - begin;
        ++n;
    }
    return total / n;
}

void compare(const char * model, Shape s, int64_t context, bool prefill) {
    s.n_cells = (context + 255) / 256 * 256;  // as llama.cpp pads it
    s.n_tokens = prefill ? std::min<int64_t>(context, 512) : 1;
    Case c(s);
    c.mask_causal(context - s.n_tokens);
    Graph ours(c), theirs(c);
    ours.prepare(true, 1);
    theirs.prepare(false, 1);
    std::vector<double> a, b;
    for (int round = -1; round < 5; ++round) {
        const double x = time_round(ours, true), y = time_round(theirs, false);
        if (round >= 0) {  // the first only warms up
            a.push_back(1e6 * x);
            b.push_back(1e6 * y);
        }
    }
    std::sort(a.begin(), a.end());
    std::sort(b.begin(), b.end());
    std::printf("| %s | %s %s | %lld | %.1f (%.1f..%.1f) | %.1f (%.1f..%.1f) | %.2fx |\n", model,
                ggml_type_name(s.k_type), prefill ? "prefill" : "decode", static_cast<long long>(context), a[2], a[0],
                a[4], b[2], b[0], b[4], b[2] / a[2]);
    std::fflush(stdout);
}

}  // namespace

int main(int argc, char ** argv) {
    pgl::kernels::choose_isa(argc > 1 ? argv[1] : nullptr);
    const ggml_type type = argc > 2 && std::string(argv[2]) == "q8_0" ? GGML_TYPE_Q8_0 : GGML_TYPE_F16;
    const int64_t largest = argc > 3 ? std::atoll(argv[3]) : 8192;
    std::printf("| model | KV, phase | context | ours, us | ggml, us | ratio |\n|---|---|---|---|---|---|\n");
    for (const bool prefill : {false, true}) {
        for (const int64_t context : {128, 512, 2048, 8192}) {
            if (context <= largest) {
                compare("SmolLM2-135M", {64, 64, 9, 3, 0, 0, 1, type, type}, context, prefill);
                compare("Llama-3.1-8B", {128, 128, 32, 8, 0, 0, 1, type, type}, context, prefill);
            }
        }
    }
}
