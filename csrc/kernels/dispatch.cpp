// Run-time choice of the instruction set.
#include "kernels/dispatch.h"

#include <atomic>
#include <cstring>

#include "kernels/matmul/forms.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace pgl::kernels {
namespace {

std::atomic<const Isa *> active{nullptr};
std::atomic<bool> named{false};   // asked for by name

constexpr const char * simd_names[] = {"avx512", "avxvnni", "avx2"};   // the best one first

bool has_avx2() {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
#else
    return false;
#endif
}

bool has_avxvnni() {
#if defined(__x86_64__)
    // Older compilers do not know it by name: leaf 7, part 1, bit 4 of EAX.
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return has_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & (1u << 4)) != 0;
#else
    return false;
#endif
}

bool has_avx512() {
#if defined(__x86_64__)
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
#else
    return false;
#endif
}

}  // namespace

const Isa * find_isa(const char * name) {
#if defined(__x86_64__)
    if (std::strcmp(name, "avx512") == 0) {
        return has_avx512() ? &avx512 : nullptr;
    }
    if (std::strcmp(name, "avxvnni") == 0) {
        return has_avxvnni() ? &avxvnni : nullptr;
    }
    if (std::strcmp(name, "avx2") == 0) {
        return has_avx2() ? &avx2 : nullptr;
    }
#endif
    return std::strcmp(name, "scalar") == 0 ? &scalar : nullptr;
}

void choose_isa(const char * wish) {
    const Isa * choice = wish ? find_isa(wish) : nullptr;
    const bool off = wish && std::strcmp(wish, "off") == 0;
    named = choice != nullptr;
    for (const char * name : simd_names) {
        choice = choice || off ? choice : find_isa(name);
    }
    // No SIMD: ggml's own paths beat our scalar reference, which is there for tests.
    active = off ? nullptr : choice;
}

void use_isa(const Isa * isa) {
    active = isa;
    named = true;
    forget_forms();
}

std::vector<const Isa *> usable_isas() {
    if (!active || named) {
        return {active.load()};
    }
    std::vector<const Isa *> isas;
    for (const char * name : simd_names) {
        if (const Isa * isa = find_isa(name)) {
            isas.push_back(isa);
        }
    }
    return isas;
}

const Isa * active_isa() {
    return active.load();
}

}  // namespace pgl::kernels
