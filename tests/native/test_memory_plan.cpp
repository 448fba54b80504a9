// Memory plans: what fits, what is refused, and by which numbers.
#include "check.h"
#include "llama/memory_plan.h"

#include <string>
#include <vector>

using namespace pgl;

namespace {

constexpr uint64_t kGiB = 1024 * kMiB;

// Weights of 1 GiB in 31 layers and the output, but for a token table of 32 MiB; a token's cache takes 31 KiB, half
// that in Q8_0.
GgufSummary model() {
    GgufSummary summary;
    summary.tensor_bytes = kGiB;
    summary.n_layer = 31;
    summary.n_head = 16;
    summary.n_embd = 1024;
    summary.n_vocab = 32000;
    summary.n_ctx_train = 131072;
    summary.input_bytes = summary.output_bytes = 32 * kMiB;
    for (int i = 0; i < 31; ++i) {
        summary.layers.push_back({(kGiB - 64 * kMiB) / 31, 1024, 512});
        summary.cache_bytes_f16 += 1024;
        summary.cache_bytes_q8_0 += 512;
    }
    return summary;
}

MemoryAvailable gib(uint64_t host, std::vector<uint64_t> gpus = {}) {
    MemoryAvailable available;
    available.host = host * kGiB;
    for (const uint64_t gpu : gpus) {
        available.gpus.push_back(gpu * kGiB);
    }
    return available;
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
    CHECK_EQ(plan_memory(model(), true, options, gib(64)).cache_bytes_per_token, 31u * 1024);
    CHECK_EQ(plan_memory(model(), false, options, gib(64)).cache_bytes_per_token, 0u);
    options.cache_type = CacheType::q8_0;
    CHECK_EQ(plan_memory(model(), true, options, gib(64)).cache_bytes_per_token, 31u * 512);
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
    MemoryPlan plan = plan_memory(model(), true, options, gib(64, {24}));
    CHECK_EQ(plan.n_gpu_layers, 32);   // all, and the output
    CHECK_EQ(plan.n_ctx, 8192);
    CHECK_EQ(plan.placement, std::string("all 32 layers on the GPU"));
    plan = plan_memory(model(), true, options, gib(64, {1}));
    CHECK(plan.n_gpu_layers > 0 && plan.n_gpu_layers < 32);
    CHECK_EQ(plan.placement,
             std::to_string(plan.n_gpu_layers) + " of 32 layers on the GPU: no more fit its free memory");
    options.n_gpu_layers = 5;
    CHECK_EQ(plan_memory(model(), true, options, gib(64, {24})).n_gpu_layers, 5);
    options.n_gpu_layers = 999;
    CHECK_EQ(plan_memory(model(), true, options, gib(64, {24})).n_gpu_layers, 32);
    options.n_gpu_layers = 0;
    CHECK_EQ(plan_memory(model(), true, options, gib(64, {24})).n_gpu_layers, 0);
    options = {};
    options.device = Device::cpu;
    plan = plan_memory(model(), true, options, gib(64, {24}));
    CHECK_EQ(plan.n_gpu_layers, 0);
    CHECK_EQ(plan.placement, std::string("all layers on the CPU: device is \"cpu\""));
}

void what_lies_on_the_gpu_needs_no_host_memory() {
    EngineOptions options;
    CHECK_EQ(plan_memory(model(), true, options, gib(1, {24})).n_gpu_layers, 32);
    options.n_gpu_layers = 2;
    CHECK(!refusal(options, gib(1, {24}), "need").empty());
    MemoryAvailable shared = gib(3, {3});   // the same memory, seen twice
    shared.shared = true;
    options = {};
    options.n_ctx = 80000;
    options.max_streams = 1;
    CHECK_EQ(refusal(options, shared, "have"), "out_of_memory " + std::to_string(3 * kGiB - kMemoryMargin));
}

void more_than_the_gpu_holds_is_refused_with_what_fits() {
    EngineOptions options;
    options.n_ctx = 2048;
    options.n_gpu_layers = 32;
    const int32_t fit = std::stoi(refusal(options, gib(64, {1}), "max_n_gpu_layers").substr(14));
    CHECK(fit > 0 && fit < 32);
    options.n_gpu_layers = fit;
    CHECK_EQ(plan_memory(model(), true, options, gib(64, {1})).n_gpu_layers, fit);   // what it names does fit
    ++options.n_gpu_layers;
    CHECK_EQ(refusal(options, gib(64, {1}), "have"), "out_of_memory " + std::to_string(kGiB));
    options.n_gpu_layers = -1;
    options.device = Device::gpu;
    options.n_ctx = 131072;   // with buffers that leave no room for one layer
    options.n_batch = 8192;
    options.max_streams = 64;
    CHECK_EQ(refusal(options, gib(600, {1}), "max_n_gpu_layers"), std::string("out_of_memory 0"));
    options.device = Device::automatic;
    const MemoryPlan plan = plan_memory(model(), true, options, gib(600, {1}));
    CHECK_EQ(plan.placement, std::string("all layers on the CPU: not one layer fits the GPU's free memory"));
}

void a_cache_takes_room_from_layers() {
    EngineOptions options;
    options.n_ctx = 1024;
    const int32_t many = plan_memory(model(), true, options, gib(64, {1})).n_gpu_layers;
    options.n_ctx = 8192;
    const int32_t few = plan_memory(model(), true, options, gib(64, {1})).n_gpu_layers;
    options.cache_type = CacheType::q8_0;
    const int32_t between = plan_memory(model(), true, options, gib(64, {1})).n_gpu_layers;
    CHECK(few < between && between < many);
    options = {};
    options.n_ctx = 8192;
    options.flash_attention = false;   // every head's scores, of a batch against the context
    CHECK(plan_memory(model(), true, options, gib(64, {2})).n_gpu_layers <
          plan_memory(model(), true, EngineOptions{}, gib(64, {2})).n_gpu_layers);
}

void several_gpus_share() {
    EngineOptions options;
    options.n_ctx = 4096;
    MemoryPlan plan = plan_memory(model(), true, options, gib(64, {1, 1, 1}));
    CHECK_EQ(plan.n_gpu_layers, 32);
    CHECK_EQ(plan.layers_of_gpu.size(), size_t{3});
    CHECK(plan.layers_of_gpu[2] >= plan.layers_of_gpu[1] && plan.layers_of_gpu[1] > 0);
    plan = plan_memory(model(), true, options, gib(64, {1, 8, 1}));   // one that holds all is not helped by others
    CHECK_EQ(plan.layers_of_gpu[1], 32);
    const int32_t alone = plan_memory(model(), true, options, gib(64, {1})).n_gpu_layers;
    plan = plan_memory(model(), true, options, gib(64, {1, 1}));
    CHECK(plan.n_gpu_layers > alone);
}

void what_is_not_there_is_refused_by_name() {
    EngineOptions options;
    options.device = Device::gpu;
    CHECK_EQ(refusal(options, gib(64), "field"), std::string("invalid_request device"));
    options.n_gpu_layers = 0;
    CHECK_EQ(refusal(options, gib(64, {24}), "field"), std::string("invalid_request n_gpu_layers"));
    options = {};
    options.device = Device::cpu;
    options.n_gpu_layers = 3;
    CHECK_EQ(refusal(options, gib(64, {24}), "field"), std::string("invalid_request n_gpu_layers"));
    options.device = Device::automatic;
    CHECK_EQ(refusal(options, gib(64), "field"), std::string("invalid_request n_gpu_layers"));
    MemoryAvailable none = gib(64);
    none.no_gpu_reason = "vulkan: it found no driver";
    options = {};
    CHECK_EQ(plan_memory(model(), true, options, none).placement,
             std::string("all layers on the CPU: vulkan: it found no driver"));
}

}  // namespace

int main() {
    context_follows_memory();
    cache_follows_its_type();
    what_does_not_fit_is_refused();
    layers_follow_the_gpu();
    what_lies_on_the_gpu_needs_no_host_memory();
    more_than_the_gpu_holds_is_refused_with_what_fits();
    a_cache_takes_room_from_layers();
    several_gpus_share();
    what_is_not_there_is_refused_by_name();
    return check::result("memory_plan");
}
