// GGUF container: a bounded parser of the header (keys, values, tensor table) that knows no meaning. Pure.
#pragma once

#include "request.h"

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace pgl {

// Throws Error("invalid_model"): "`what` 'name' is value; allowed: ...". Names and values from the file are made
// printable and cut, for they may be anything. `what` is key, tensor, header or file.
[[noreturn]] void refuse(const char * what, std::string_view name, const std::string & value,
                         const std::string & allowed);

inline bool ends_with(std::string_view text, std::string_view end) {
    return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

std::string range(uint64_t lo, uint64_t hi);   // "lo..hi"

// A string from the file as valid UTF-8, cut to at most `limit` bytes: what is invalid becomes '?'.
std::string clean_utf8(std::string_view text, size_t limit = SIZE_MAX);

class GgufFile {
  public:
    enum class Type : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

    struct Value {
        std::string_view key;
        Type type = Type::u8;     // of the elements, for an array
        bool is_array = false;
        uint64_t n = 1;               // elements; a scalar has one
        std::string_view data;        // packed elements as in the file; a scalar string: its characters
    };

    struct Tensor {
        std::string_view name;
        uint32_t type = 0;                              // ggml's number; known to the type table
        uint32_t n_dims = 0;
        std::array<uint64_t, 4> ne = {1, 1, 1, 1};      // elements per dimension, rows first
        uint64_t n_elements = 0, n_bytes = 0;
    };

    // A row of ggml's storage formats. Those of no use as weights (scratch formats) and the integers are known too.
    struct TensorType {
        uint32_t id;
        const char * name;
        uint32_t block_elements, block_bytes;
        enum class Kind : uint8_t { f32, weight, other } kind;   // weight: may hold the factor of a matrix product
    };
    static const TensorType * tensor_type(uint32_t id);   // nullptr = unknown

    // Reads the header and checks it against the container rules and the file's size. Errors as check_gguf's.
    explicit GgufFile(const std::string & path);

    uint32_t version() const { return version_; }
    uint64_t file_bytes() const { return file_bytes_; }
    uint64_t tensor_bytes() const { return tensor_bytes_; }
    uint32_t alignment() const { return alignment_; }     // of the tensors' data, in bytes
    const std::vector<Value> & values() const { return values_; }
    const std::vector<Tensor> & tensors() const { return tensors_; }

    const Value * find(std::string_view key) const;       // nullptr = absent

    // One scalar of exactly this type, as the loader wants it: another type is refused, absence is nullopt.
    std::optional<uint32_t> u32(std::string_view key) const;
    std::optional<float> f32(std::string_view key) const;
    std::optional<bool> boolean(std::string_view key) const;
    std::optional<std::string_view> string(std::string_view key) const;

    static const char * type_name(Type type);
    static std::string scalar_text(const Value & value);  // numbers in decimal, strings cleaned and cut to 256 bytes
    template <typename T>
    static T element(const Value & value, uint64_t i) {   // of an array or scalar of fixed-size elements
        T result;
        std::memcpy(&result, value.data.data() + i * sizeof(T), sizeof(T));
        return result;
    }

  private:
    struct Reader;
    void parse(Reader & reader);
    const Value * scalar(std::string_view key, Type type) const;

    std::vector<char> header_;   // the views above point into it
    uint32_t version_ = 0, alignment_ = 32;
    uint64_t file_bytes_ = 0, tensor_bytes_ = 0;
    std::vector<Value> values_;
    std::vector<Tensor> tensors_;
    std::unordered_map<std::string_view, size_t> index_;   // key -> values_
};

// The strings of an array of strings, in order. Only for a Value the parser has accepted.
class GgufStrings {
  public:
    explicit GgufStrings(const GgufFile::Value & value) : rest_(value.data) {}
    std::string_view next() {
        uint64_t n;
        std::memcpy(&n, rest_.data(), sizeof(n));
        const std::string_view result = rest_.substr(sizeof(n), n);
        rest_.remove_prefix(sizeof(n) + n);
        return result;
    }

  private:
    std::string_view rest_;
};

}  // namespace pgl
