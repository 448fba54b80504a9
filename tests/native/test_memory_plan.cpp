// Memory plans: what fits, what is refused, and by which numbers.
#include "check.h"
#include "llama/memory_plan.h"

#include <string>

using namespace pgl;

namespace {

constexpr uint64_t kGiB = 1024 * kMiB;

// Weights of 1 GiB in 31 layers and the output; a token's cache takes 1 KiB, half that in Q8_0.
GgufSummary model() {
    GgufSummary summary;
    summary.tensor_bytes = kGiB;
    summary.n_layer = 31;
    summary.n_embd = 1024;
    summary.n_vocab = 32000;
    summary.n_ctx_train = 131072;
    summary.cache_bytes_f16 = 1024;
    summary.cache_bytes_q8_0 = 512;
    return summary;
}

MemoryAvailable gib(uint64_t host, uint64_t device = 0) {
    return {host * kGiB, device * kGiB, device > 0 ? 1 : 0};
}

// The code of the refusal, and the named detail.
std::string refusal(const EngineOptions & options, const MemoryAvailable & available, const char * detail) {
    try {
        plan_memory(model(), true, options, available);
    } catch (const Error & error) {
        return error.code + " " + error.details.at(detail);
    }
    return "";
}

void context_follows_memory() {
    EngineOptions options;
    CHECK_EQ(plan_memory(model(), true, options, gib(64)).n_ctx, 8192);   // longer only where asked for
    const int32_t tight = plan_memory(model(), true, options, gib(2)).n_ctx;
    CHECK(tight >= 2048 && tight < 131072);
    options.n_ctx = 100000;
    CHECK_EQ(plan_memory(model(), true, options, gib(64)).n_ctx, 100000);
    GgufSummary small = model();
    small.n_ctx_train = 128;
    options.n_ctx = 0;
    CHECK_EQ(plan_memory(small, true, options, gib(64)).n_ctx, 128);      // shorter than llama.cpp's least
    small.n_ctx_train = 0;
    CHECK_EQ(trained_context(small), 8192);
}

void cache_follows_its_type() {
    EngineOptions options;
    CHECK_EQ(plan_memory(model(), true, options, gib(64)).cache_bytes_per_token, 1024u);
    CHECK_EQ(plan_memory(model(), false, options, gib(64)).cache_bytes_per_token, 0u);
    options.cache_type = CacheType::q8_0;
    CHECK_EQ(plan_memory(model(), true, options, gib(64)).cache_bytes_per_token, 512u);
    options.flash_attention = false;
    CHECK_EQ(refusal(options, gib(64), "field"), std::string("invalid_request cache_type"));
}

void what_does_not_fit_is_refused() {
    EngineOptions options;
    CHECK_EQ(refusal(options, gib(1), "max_n_ctx"), std::string("out_of_memory 0"));
    options.n_ctx = 1 << 20;
    options.max_streams = 1;
    CHECK_EQ(refusal(options, gib(2), "have"), "out_of_memory " + std::to_string(2 * kGiB - kMemoryMargin));
    options.n_ctx = std::stoi(refusal(options, gib(2), "max_n_ctx").substr(std::string("out_of_memory ").size()));
    CHECK_EQ(plan_memory(model(), true, options, gib(2)).n_ctx, options.n_ctx);   // what the refusal names does fit
    ++options.n_ctx;
    CHECK(!refusal(options, gib(2), "need").empty());
}

void layers_follow_the_gpu() {
    EngineOptions options;
    CHECK_EQ(plan_memory(model(), true, options, gib(64)).n_gpu_layers, 0);
    CHECK_EQ(plan_memory(model(), true, options, gib(64, 24)).n_gpu_layers, 32);   // all, and the output
    const int32_t some = plan_memory(model(), true, options, gib(64, 1)).n_gpu_layers;
    CHECK(some > 0 && some < 32);
    options.n_gpu_layers = 5;
    CHECK_EQ(plan_memory(model(), true, options, gib(64, 24)).n_gpu_layers, 5);
    options.n_gpu_layers = 0;
    CHECK_EQ(plan_memory(model(), true, options, gib(64, 24)).n_gpu_layers, 0);
    options = {};
    options.device = Device::cpu;
    CHECK_EQ(plan_memory(model(), true, options, gib(64, 24)).n_gpu_layers, 0);
    options.device = Device::gpu;
    CHECK_EQ(refusal(options, gib(64), "field"), std::string("invalid_request device"));
}

}  // namespace

int main() {
    context_follows_memory();
    cache_follows_its_type();
    what_does_not_fit_is_refused();
    layers_follow_the_gpu();
    return check::result("memory_plan");
}
