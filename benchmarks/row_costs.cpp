// Row costs: what a pass over the weights takes with 1..N rows of one sequence, all with logits. It is what lookup
// drafting pays for its guesses.
//
//   row_costs MODEL.gguf N_THREADS N_ROUNDS f16|q8_0 N_PAST MAX_ROWS
//
// N_PAST tokens are in the KV cache before every pass. In every round each row count is run twice: the first pass after
// another count builds a new graph, the second reuses it. Prints one line of JSON per row count:
//   {"rows": n, "new_ms": [one per round], "ms": [one per round]}
#include "bare_context.h"
#include "llama/devices.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

namespace {

// Decodes n tokens at `position` and takes them out of the cache again. Returns milliseconds of the decode.
double pass(llama_context * context, int32_t n_vocab, int32_t n, int32_t position) {
    llama_batch batch = llama_batch_init(n, 0, 1);
    batch.n_tokens = n;
    for (int32_t i = 0; i < n; ++i) {
        batch.token[i] = static_cast<llama_token>((static_cast<int64_t>(position + i) * 7919 + 17) % n_vocab);
        batch.pos[i] = position + i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = 1;
    }
    const auto start = std::chrono::steady_clock::now();
    const int32_t status = llama_decode(context, batch);
    const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    llama_batch_free(batch);
    if (status != 0 || !llama_memory_seq_rm(llama_get_memory(context), 0, position, -1)) {
        throw pgl::Error("internal_error", "the pass failed");
    }
    return ms;
}

void fill(llama_context * context, int32_t n_past) {
    for (int32_t at = 0; at < n_past; at += kBatch) {
        std::vector<llama_token> tokens;
        for (int32_t i = at; i < std::min(n_past, at + kBatch); ++i) {
            tokens.push_back(i % 251 + 100);
        }
        if (llama_decode(context, llama_batch_get_one(tokens.data(), static_cast<int32_t>(tokens.size()))) != 0) {
            throw pgl::Error("internal_error", "the prompt could not be computed");
        }
    }
}

void print(const char * name, const std::vector<double> & values, const char * end) {
    std::printf("\"%s\": [", name);
    for (size_t i = 0; i < values.size(); ++i) {
        std::printf("%s%.4f", i > 0 ? ", " : "", values[i]);
    }
    std::printf("]%s", end);
}

}  // namespace

int main(int argc, char ** argv) {
    if (argc != 7) {
        std::fprintf(stderr, "usage: %s MODEL.gguf N_THREADS N_ROUNDS f16|q8_0 N_PAST MAX_ROWS\n", argv[0]);
        return 2;
    }
    try {
        const int32_t n_threads = std::stoi(argv[2]), n_rounds = std::stoi(argv[3]);
        const int32_t n_past = std::stoi(argv[5]), max_rows = std::stoi(argv[6]);
        pgl::initialise_backends();
        const BareContext bare = open_bare_context(argv[1], n_threads, n_past + max_rows,
                                                   std::string(argv[4]) == "q8_0" ? GGML_TYPE_Q8_0 : GGML_TYPE_F16);
        const int32_t n_vocab = bare.n_vocab();
        fill(bare.context.get(), n_past);
        std::vector<std::vector<double>> fresh(static_cast<size_t>(max_rows)), again(static_cast<size_t>(max_rows));
        for (int32_t round = 0; round < n_rounds; ++round) {
            for (int32_t rows = 1; rows <= max_rows; ++rows) {
                fresh[static_cast<size_t>(rows - 1)].push_back(pass(bare.context.get(), n_vocab, rows, n_past));
                again[static_cast<size_t>(rows - 1)].push_back(pass(bare.context.get(), n_vocab, rows, n_past));
            }
        }
        for (int32_t rows = 1; rows <= max_rows; ++rows) {
            std::printf("{\"rows\": %d, ", rows);
            print("new_ms", fresh[static_cast<size_t>(rows - 1)], ", ");
            print("ms", again[static_cast<size_t>(rows - 1)], "}\n");
        }
    } catch (const std::exception & error) {
        std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
        return 1;
    }
    return 0;
}
