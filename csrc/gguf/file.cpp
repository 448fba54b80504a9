// GGUF container: every length is checked against what is left before it is believed.
#include "gguf/file.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <limits>
#include <unordered_set>

namespace pgl {

namespace {

constexpr uint64_t MiB = 1024 * 1024;
constexpr uint64_t max_header_bytes = 256 * MiB, max_key_bytes = 64 * 1024, max_string_bytes = 16 * MiB;
constexpr uint64_t max_template_bytes = MiB, max_elements = 16 * MiB, max_entries = 65536, max_name_bytes = 63;
constexpr uint64_t max_alignment = MiB;

// An array of empty strings takes 8 bytes each in the file and about 76 in the loader's memory (measured), so a small
// file could ask for much. Real vocabularies stay below 8 times the file.
constexpr uint64_t loaded_string_bytes = 80, loaded_floor_bytes = 64 * MiB, loaded_factor = 8;

using Kind = GgufFile::TensorType::Kind;

constexpr GgufFile::TensorType tensor_types[] = {
    {0, "F32", 1, 4, Kind::f32},
    {1, "F16", 1, 2, Kind::weight},
    {2, "Q4_0", 32, 18, Kind::weight},
    {3, "Q4_1", 32, 20, Kind::weight},
    {6, "Q5_0", 32, 22, Kind::weight},
    {7, "Q5_1", 32, 24, Kind::weight},
    {8, "Q8_0", 32, 34, Kind::weight},
    {9, "Q8_1", 32, 36, Kind::other},
    {10, "Q2_K", 256, 84, Kind::weight},
    {11, "Q3_K", 256, 110, Kind::weight},
    {12, "Q4_K", 256, 144, Kind::weight},
    {13, "Q5_K", 256, 176, Kind::weight},
    {14, "Q6_K", 256, 210, Kind::weight},
    {15, "Q8_K", 256, 292, Kind::other},
    {16, "IQ2_XXS", 256, 66, Kind::weight},
    {17, "IQ2_XS", 256, 74, Kind::weight},
    {18, "IQ3_XXS", 256, 98, Kind::weight},
    {19, "IQ1_S", 256, 50, Kind::weight},
    {20, "IQ4_NL", 32, 18, Kind::weight},
    {21, "IQ3_S", 256, 110, Kind::weight},
    {22, "IQ2_S", 256, 82, Kind::weight},
    {23, "IQ4_XS", 256, 136, Kind::weight},
    {24, "I8", 1, 1, Kind::other},
    {25, "I16", 1, 2, Kind::other},
    {26, "I32", 1, 4, Kind::other},
    {27, "I64", 1, 8, Kind::other},
    {28, "F64", 1, 8, Kind::other},
    {29, "IQ1_M", 256, 56, Kind::weight},
    {30, "BF16", 1, 2, Kind::weight},
    {34, "TQ1_0", 256, 54, Kind::weight},
    {35, "TQ2_0", 256, 66, Kind::weight},
    {39, "MXFP4", 32, 17, Kind::weight},
    {40, "NVFP4", 64, 36, Kind::weight},
    {41, "Q1_0", 128, 18, Kind::weight},
    {42, "Q2_0", 64, 18, Kind::weight},
};

constexpr uint32_t type_bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};   // by Type; 0 = not of fixed size

// Bytes of the UTF-8 character that begins here, 0 if none does.
size_t character_bytes(std::string_view text) {
    const auto at = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
    const size_t n = at(0) < 0x80 ? 1 : at(0) < 0xC2 ? 0 : at(0) < 0xE0 ? 2 : at(0) < 0xF0 ? 3 : at(0) < 0xF5 ? 4 : 0;
    if (n > text.size()) {
        return 0;
    }
    for (size_t i = 1; i < n; ++i) {
        if ((at(i) & 0xC0) != 0x80) {
            return 0;
        }
    }
    const bool overlong = (at(0) == 0xE0 && at(1) < 0xA0) || (at(0) == 0xF0 && at(1) < 0x90);
    const bool no_scalar = (at(0) == 0xED && at(1) > 0x9F) || (at(0) == 0xF4 && at(1) > 0x8F);
    return overlong || no_scalar ? 0 : n;
}

std::string printable(std::string_view text) {
    std::string result(text.substr(0, 80));
    for (char & c : result) {
        c = c >= 0x20 && c < 0x7f ? c : '?';
    }
    return result + (text.size() > 80 ? "..." : "");
}

struct NeedMore {};   // the parser ran past what was read so far, not past the file

}  // namespace

void refuse(const char * what, std::string_view name, const std::string & value, const std::string & allowed) {
    const std::string shown = printable(name), shown_value = printable(value);
    throw Error("invalid_model", std::string(what) + " '" + shown + "' is " + shown_value + "; allowed: " + allowed,
                {{what, shown}, {"value", shown_value}, {"allowed", allowed}});
}

std::string range(uint64_t lo, uint64_t hi) {
    return std::to_string(lo) + ".." + std::to_string(hi);
}

std::string clean_utf8(std::string_view text, size_t limit) {
    std::string result;
    while (!text.empty()) {
        const size_t n = character_bytes(text);
        if (result.size() + std::max<size_t>(n, 1) > limit) {
            break;
        }
        if (n > 0) {
            result += text.substr(0, n);
        } else {
            result += '?';
        }
        text.remove_prefix(std::max<size_t>(n, 1));
    }
    return result;
}

struct GgufFile::Reader {
    std::string_view loaded;
    uint64_t file_bytes;
    uint64_t at = 0;

    std::string_view take(uint64_t n, const char * what, std::string_view name) {
        if (n > file_bytes - at) {
            refuse(what, name, "cut short by the end of the file", "a whole file");
        }
        if (n > max_header_bytes - at) {
            refuse("header", "size", "more than " + std::to_string(max_header_bytes), range(24, max_header_bytes));
        }
        if (n > loaded.size() - at) {
            throw NeedMore{};
        }
        const std::string_view result = loaded.substr(at, n);
        at += n;
        return result;
    }

    template <typename T> T number(const char * what, std::string_view name) {
        T result;
        std::memcpy(&result, take(sizeof(T), what, name).data(), sizeof(T));
        return result;
    }

    std::string_view string(uint64_t limit, const char * what, std::string_view name) {
        const auto n = number<uint64_t>(what, name);
        if (n > limit) {
            refuse(what, name, "a string of " + std::to_string(n) + " bytes", "at most " + std::to_string(limit));
        }
        return take(n, what, name);
    }
};

const GgufFile::TensorType * GgufFile::tensor_type(uint32_t id) {
    for (const TensorType & type : tensor_types) {
        if (type.id == id) {
            return &type;
        }
    }
    return nullptr;
}

GgufFile::GgufFile(const std::string & path) {
    namespace fs = std::filesystem;
    std::error_code error;
    const fs::path file = fs::u8path(path);
    if (!fs::is_regular_file(file, error)) {
        throw Error("not_found", error ? "the model file cannot be opened" : "the model path is no regular file");
    }
    file_bytes_ = fs::file_size(file, error);
    std::ifstream stream(file, std::ios::binary);
    if (error || !stream) {
        throw Error("not_found", "the model file cannot be opened");
    }
    // Parsed anew with four times as much until it suffices: the sum is a constant times the header.
    for (uint64_t n = MiB;; n *= 4) {
        const uint64_t old = header_.size(), now = std::min({n, file_bytes_, max_header_bytes});
        header_.resize(now);
        stream.read(header_.data() + old, static_cast<std::streamsize>(now - old));
        if (static_cast<uint64_t>(stream.gcount()) != now - old) {
            throw Error("not_found", "the model file cannot be read");
        }
        try {
            Reader reader{{header_.data(), header_.size()}, file_bytes_};
            parse(reader);
            return;
        } catch (const NeedMore &) {
            values_.clear();
            tensors_.clear();
            index_.clear();
        }
    }
}

void GgufFile::parse(Reader & reader) {
    if (file_bytes_ < 24 || reader.take(4, "header", "magic") != "GGUF") {
        refuse("header", "magic", "not GGUF", "GGUF, then at least 20 bytes");
    }
    version_ = reader.number<uint32_t>("header", "version");
    if (version_ < 2 || version_ > 3) {
        refuse("header", "version", std::to_string(version_), "2..3, little-endian");
    }
    const auto n_tensors = reader.number<uint64_t>("header", "n_tensors");
    const auto n_kv = reader.number<uint64_t>("header", "n_kv");
    if (n_tensors > max_entries) {
        refuse("header", "n_tensors", std::to_string(n_tensors), range(0, max_entries));
    }
    if (n_kv > max_entries) {
        refuse("header", "n_kv", std::to_string(n_kv), range(0, max_entries));
    }

    uint64_t loaded_bytes = 0;
    for (uint64_t i = 0; i < n_kv; ++i) {
        Value value;
        const std::string nth = "#" + std::to_string(i);
        value.key = reader.string(max_key_bytes, "key", nth);
        if (value.key.empty()) {
            refuse("key", nth, "an empty name", "1.." + std::to_string(max_key_bytes) + " bytes");
        }
        if (!index_.emplace(value.key, values_.size()).second) {
            refuse("key", value.key, "there twice", "unique keys");
        }
        const auto read_type = [&] {
            const auto number = reader.number<uint32_t>("key", value.key);
            if (number > static_cast<uint32_t>(Type::f64)) {
                refuse("key", value.key, "of value type " + std::to_string(number), "types 0..12");
            }
            return static_cast<Type>(number);
        };
        value.type = read_type();
        if (value.type == Type::array) {
            value.is_array = true;
            value.type = read_type();
            value.n = reader.number<uint64_t>("key", value.key);
            if (value.type == Type::array) {
                refuse("key", value.key, "an array of arrays", "arrays of scalars or strings");
            }
            if (value.n > max_elements) {
                refuse("key", value.key, "an array of " + std::to_string(value.n), range(0, max_elements));
            }
        }
        if (value.type != Type::string) {
            value.data = reader.take(value.n * type_bytes[static_cast<uint32_t>(value.type)], "key", value.key);
            loaded_bytes += value.data.size();
        } else if (!value.is_array) {
            const bool is_template = value.key.substr(0, 23) == "tokenizer.chat_template";
            value.data = reader.string(is_template ? max_template_bytes : max_string_bytes, "key", value.key);
            loaded_bytes += value.data.size();
        } else {
            const uint64_t start = reader.at;
            for (uint64_t j = 0; j < value.n; ++j) {
                reader.string(max_string_bytes, "key", value.key);
            }
            value.data = reader.loaded.substr(start, reader.at - start);
            loaded_bytes += value.data.size() + value.n * loaded_string_bytes;
        }
        const uint64_t allowed = std::max(loaded_floor_bytes, loaded_factor * file_bytes_);
        if (loaded_bytes > allowed) {
            refuse("key", value.key, std::to_string(loaded_bytes) + " bytes when loaded, with the keys before it",
                   "at most " + std::to_string(allowed));
        }
        values_.push_back(value);
    }

    alignment_ = 32;
    if (const auto given = u32("general.alignment")) {
        const uint32_t alignment = *given;
        if (alignment == 0 || alignment > max_alignment || (alignment & (alignment - 1)) != 0) {
            refuse("key", "general.alignment", std::to_string(alignment),
                   "a power of two, 1.." + std::to_string(max_alignment));
        }
        alignment_ = alignment;
    }

    std::unordered_set<std::string_view> names;
    std::vector<uint64_t> offsets;
    for (uint64_t i = 0; i < n_tensors; ++i) {
        Tensor tensor;
        tensor.name = reader.string(max_name_bytes, "tensor", "#" + std::to_string(i));
        if (!names.insert(tensor.name).second) {
            refuse("tensor", tensor.name, "there twice", "unique names");
        }
        tensor.n_dims = reader.number<uint32_t>("tensor", tensor.name);
        if (tensor.n_dims > 4) {
            refuse("tensor", tensor.name, "of " + std::to_string(tensor.n_dims) + " dimensions", range(0, 4));
        }
        tensor.n_elements = 1;
        for (uint32_t d = 0; d < tensor.n_dims; ++d) {
            tensor.ne[d] = reader.number<uint64_t>("tensor", tensor.name);
            const uint64_t most = static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) / tensor.n_elements;
            if (tensor.ne[d] == 0 || tensor.ne[d] > most) {
                refuse("tensor", tensor.name,
                       "of " + std::to_string(tensor.ne[d]) + " in dimension " + std::to_string(d),
                       "1.. and fewer than 2^63 elements in all");
            }
            tensor.n_elements *= tensor.ne[d];
        }
        tensor.type = reader.number<uint32_t>("tensor", tensor.name);
        const TensorType * type = tensor_type(tensor.type);
        if (type == nullptr) {
            refuse("tensor", tensor.name, "of type " + std::to_string(tensor.type), "a known tensor type");
        }
        if (tensor.ne[0] % type->block_elements != 0) {
            refuse("tensor", tensor.name, "of " + std::to_string(tensor.ne[0]) + " elements per row",
                   "multiples of " + std::to_string(type->block_elements) + " for " + type->name);
        }
        const uint64_t n_blocks = tensor.n_elements / type->block_elements;
        if (n_blocks > file_bytes_ / type->block_bytes) {
            refuse("tensor", tensor.name, "larger than the file", "at most " + std::to_string(file_bytes_) + " bytes");
        }
        tensor.n_bytes = n_blocks * type->block_bytes;
        offsets.push_back(reader.number<uint64_t>("tensor", tensor.name));
        tensors_.push_back(tensor);
    }

    // The sums pass the file's size by one tensor at most, so they cannot overflow.
    const uint64_t alignment = alignment_;
    const auto padded = [&](uint64_t n) { return (n + alignment - 1) & ~(alignment - 1); };
    const uint64_t data = padded(reader.at);
    uint64_t expected = 0;
    tensor_bytes_ = 0;
    for (size_t i = 0; i < tensors_.size(); ++i) {
        const Tensor & tensor = tensors_[i];
        if (offsets[i] != expected) {
            refuse("tensor", tensor.name, "at offset " + std::to_string(offsets[i]),
                   std::to_string(expected) + ", right after the one before it");
        }
        if (data + expected + tensor.n_bytes > file_bytes_) {
            refuse("tensor", tensor.name,
                   "cut short: it ends at byte " + std::to_string(data + expected + tensor.n_bytes),
                   "at most " + std::to_string(file_bytes_) + ", the file's size");
        }
        tensor_bytes_ += tensor.n_bytes;
        expected += padded(tensor.n_bytes);
    }
}

const GgufFile::Value * GgufFile::find(std::string_view key) const {
    const auto it = index_.find(key);
    return it == index_.end() ? nullptr : &values_[it->second];
}

const GgufFile::Value * GgufFile::scalar(std::string_view key, Type type) const {
    const Value * value = find(key);
    if (value != nullptr && (value->is_array || value->type != type)) {
        refuse("key", key, std::string("of type ") + (value->is_array ? "array of " : "") + type_name(value->type),
               type_name(type));
    }
    return value;
}

std::optional<uint32_t> GgufFile::u32(std::string_view key) const {
    const Value * value = scalar(key, Type::u32);
    return value == nullptr ? std::nullopt : std::optional(element<uint32_t>(*value, 0));
}

std::optional<float> GgufFile::f32(std::string_view key) const {
    const Value * value = scalar(key, Type::f32);
    return value == nullptr ? std::nullopt : std::optional(element<float>(*value, 0));
}

std::optional<bool> GgufFile::boolean(std::string_view key) const {
    const Value * value = scalar(key, Type::boolean);
    return value == nullptr ? std::nullopt : std::optional(element<uint8_t>(*value, 0) != 0);
}

std::optional<std::string_view> GgufFile::string(std::string_view key) const {
    const Value * value = scalar(key, Type::string);
    return value == nullptr ? std::nullopt : std::optional(value->data);
}

const char * GgufFile::type_name(Type type) {
    static const char * names[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                   "bool", "string", "array", "u64", "i64", "f64"};
    return names[static_cast<uint32_t>(type)];
}

std::string GgufFile::scalar_text(const Value & value) {
    const auto decimal = [](double x) {
        char text[32];
        std::snprintf(text, sizeof(text), "%.9g", x);
        return std::string(text);
    };
    switch (value.type) {
    case Type::u8:
        return std::to_string(element<uint8_t>(value, 0));
    case Type::i8:
        return std::to_string(element<int8_t>(value, 0));
    case Type::u16:
        return std::to_string(element<uint16_t>(value, 0));
    case Type::i16:
        return std::to_string(element<int16_t>(value, 0));
    case Type::u32:
        return std::to_string(element<uint32_t>(value, 0));
    case Type::i32:
        return std::to_string(element<int32_t>(value, 0));
    case Type::u64:
        return std::to_string(element<uint64_t>(value, 0));
    case Type::i64:
        return std::to_string(element<int64_t>(value, 0));
    case Type::f32:
        return decimal(static_cast<double>(element<float>(value, 0)));
    case Type::f64:
        return decimal(element<double>(value, 0));
    case Type::boolean:
        return element<uint8_t>(value, 0) != 0 ? "true" : "false";
    case Type::string:
        return clean_utf8(value.data, 256);
    case Type::array:
        break;
    }
    return "";
}

}  // namespace pgl
