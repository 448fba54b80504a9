#include "gguf/splits.h"

#include <cstdio>

namespace pgl {
namespace {

// The ending of the i-th of n names, i from 0; names count from 1.
std::string split_ending(uint32_t i, uint32_t n) {
    char text[32];
    std::snprintf(text, sizeof(text), "-%05u-of-%05u.gguf", i + 1, n);
    return text;
}

uint32_t split_number(const GgufFile & file, const char * name) {
    const GgufFile::Value * value = file.find(name);
    if (value == nullptr || value->is_array || value->type != GgufFile::Type::u16) {
        refuse("key", name, value == nullptr ? "missing" : "of another type", "u16");
    }
    return GgufFile::element<uint16_t>(*value, 0);
}

}  // namespace

std::vector<GgufFile> later_splits(const GgufFile & first, const std::string & path) {
    if (first.find("split.count") == nullptr) {
        return {};
    }
    const uint32_t n = split_number(first, "split.count");
    if (n <= 1) {
        return {};
    }
    if (n > 1000) {
        refuse("key", "split.count", std::to_string(n), range(0, 1000));
    }
    const std::string ending = split_ending(0, n);
    if (split_number(first, "split.no") != 0) {
        refuse("key", "split.no",
               std::to_string(split_number(first, "split.no")) + ", one of the later files of a model",
               "0: open the first file, whose name ends in " + ending);
    }
    if (!ends_with(path, ending)) {
        refuse("file", "name", "not that of the first of " + std::to_string(n), "a name that ends in " + ending);
    }
    const std::string stem = path.substr(0, path.size() - ending.size());
    std::vector<GgufFile> files;
    files.reserve(n - 1);
    for (uint32_t i = 1; i < n; ++i) {
        try {
            files.emplace_back(stem + split_ending(i, n));
        } catch (const Error & error) {
            if (error.code != "not_found") {
                throw;
            }
            refuse("file", split_ending(i, n), "missing", "all " + std::to_string(n) + " files in one directory");
        }
        const uint32_t no = split_number(files.back(), "split.no");
        if (no != i) {
            refuse("key", "split.no", std::to_string(no) + " in file " + std::to_string(i + 1), std::to_string(i));
        }
    }
    return files;
}

}  // namespace pgl
