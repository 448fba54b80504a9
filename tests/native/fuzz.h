// Fuzz targets: LLVMFuzzerTestOneInput() over any bytes, and the first inputs. With -DPGL_LIBFUZZER=ON (Clang)
// libFuzzer drives a target for as long as one likes; else the target is an ordinary test, which alters the first
// inputs PGL_FUZZ_INPUTS times, in the same ways in every run.
#pragma once

#include "check.h"

#include <cstdint>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

std::vector<std::string> first_inputs();
extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size);

#if !defined(PGL_LIBFUZZER)

#if !defined(PGL_FUZZ_INPUTS)
#define PGL_FUZZ_INPUTS 20000
#endif

namespace fuzz {

// One to eight alterations: a byte, a bit, a number that is often special, a piece repeated, taken out or moved.
inline std::string altered(std::string text, std::mt19937 & bits) {
    const auto below = [&](size_t n) { return n < 2 ? 0 : std::uniform_int_distribution<size_t>(0, n - 1)(bits); };
    static const uint64_t special[] = {0, 1, 2, 255, 65536, 0x7fffffff, 0xffffffff, 1ull << 32, ~0ull, 1ull << 63};
    for (size_t n = 1 + below(8); n > 0 && !text.empty(); --n) {
        const size_t at = below(text.size()), length = 1 + below(std::min<size_t>(64, text.size() - at));
        switch (below(6)) {
        case 0:
            text[at] = static_cast<char>(below(256));
            break;
        case 1:
            text[at] = static_cast<char>(text[at] ^ (1 << below(8)));
            break;
        case 2: {
            const uint64_t value = special[below(std::size(special))];
            text.replace(at, std::min(sizeof value, text.size() - at), reinterpret_cast<const char *>(&value),
                         std::min(sizeof value, text.size() - at));
            break;
        }
        case 3:
            text.insert(at, text.substr(at, length));
            break;
        case 4:
            text.erase(at, length);
            break;
        default:
            text.insert(below(text.size()), text.substr(at, length));
        }
    }
    return text;
}

}  // namespace fuzz

// The number of inputs may be given.
int main(int argc, char ** argv) {
    const long n_inputs = argc > 1 ? std::strtol(argv[1], nullptr, 10) : PGL_FUZZ_INPUTS;
    const std::vector<std::string> seeds = first_inputs();
    std::mt19937 bits(1);
    const auto run = [](const std::string & input) {
        // Of exactly its size, so that a sanitizer sees a read behind it.
        const std::vector<uint8_t> exact(input.begin(), input.end());
        LLVMFuzzerTestOneInput(exact.data(), exact.size());
        ++check::n_checked;
    };
    for (const std::string & seed : seeds) {
        run(seed);
    }
    for (long i = 0; i < n_inputs; ++i) {
        run(fuzz::altered(seeds[static_cast<size_t>(i) % seeds.size()], bits));
    }
    return check::result("fuzz");
}

#else

#include <filesystem>
#include <fstream>

// Called once: the first inputs join the corpus, which is the first folder among the arguments.
extern "C" int LLVMFuzzerInitialize(int * argc, char *** argv) {
    const std::vector<std::string> inputs = first_inputs();
    for (int i = 1; i < *argc; ++i) {
        if (const std::filesystem::path folder = (*argv)[i]; std::filesystem::is_directory(folder)) {
            for (size_t n = 0; n < inputs.size(); ++n) {
                std::ofstream(folder / ("first-" + std::to_string(n)), std::ios::binary) << inputs[n];
            }
            break;
        }
    }
    return 0;
}

#endif
