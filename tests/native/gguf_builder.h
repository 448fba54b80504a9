// A GGUF file in pieces that a test can change one by one, valid or not, before it is written.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

namespace builder {

enum Type : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

template <typename T> std::string bytes_of(T value) {
    std::string result(sizeof(T), '\0');
    std::memcpy(&result[0], &value, sizeof(T));
    return result;
}

inline std::string bytes_of(const std::string & text) {
    return bytes_of(uint64_t(text.size())) + text;
}

struct Key {
    std::string name;
    uint32_t type;
    std::string payload;   // as in the file; for an array: element type, count, elements
};

struct Tensor {
    std::string name;
    std::vector<uint64_t> ne;
    uint32_t type;
    int64_t shift = 0;   // added to the right offset
};

// Block elements and bytes of the tensor types used here, by ggml's number.
inline std::pair<uint64_t, uint64_t> block(uint32_t type) {
    switch (type) {
    case 0:
    case 26:
        return {1, 4};     // F32, I32
    case 1:
    case 25:
    case 30:
        return {1, 2};   // F16, I16, BF16
    case 2:
        return {32, 18};            // Q4_0
    case 8:
        return {32, 34};            // Q8_0
    case 12:
        return {256, 144};         // Q4_K
    case 24:
        return {1, 1};             // I8
    case 27:
    case 28:
        return {1, 8};    // I64, F64
    default:
        return {1, 1};
    }
}

struct Gguf {
    uint32_t version = 3;
    uint64_t alignment = 32;
    int64_t n_tensors_shift = 0, n_kv_shift = 0;   // added to the right counts
    int64_t end_shift = 0;                         // bytes more or fewer at the end
    std::vector<Key> keys;
    std::vector<Tensor> tensors;

    Key & key(const std::string & name) {
        for (Key & k : keys) {
            if (k.name == name)
                return k;
        }
        keys.push_back({name, u32, bytes_of(uint32_t(0))});
        return keys.back();
    }
    void put(const std::string & name, uint32_t type, std::string payload) { key(name) = {name, type, payload}; }
    void erase(const std::string & name) {
        keys.erase(std::remove_if(keys.begin(), keys.end(), [&](const Key & k) { return k.name == name; }), keys.end());
    }
    void set(const std::string & name, uint32_t value) { put(name, u32, bytes_of(value)); }
    void set(const std::string & name, float value) { put(name, f32, bytes_of(value)); }
    void set(const std::string & name, bool value) { put(name, boolean, bytes_of(value)); }
    void set(const std::string & name, const char * value) { put(name, string, bytes_of(std::string(value))); }
    template <typename T> void set(const std::string & name, uint32_t type, const std::vector<T> & values) {
        std::string payload = bytes_of(type) + bytes_of(uint64_t(values.size()));
        for (const T & value : values)
            payload += bytes_of(value);
        put(name, array, payload);
    }
    Tensor & tensor(const std::string & name) {
        for (Tensor & t : tensors) {
            if (t.name == name)
                return t;
        }
        tensors.push_back({name, {32}, 0});
        return tensors.back();
    }

    std::string header() const {
        std::string out = "GGUF" + bytes_of(version) + bytes_of(uint64_t(tensors.size()) + n_tensors_shift) +
                          bytes_of(uint64_t(keys.size()) + n_kv_shift);
        for (const Key & k : keys) {
            out += bytes_of(k.name) + bytes_of(k.type) + k.payload;
        }
        uint64_t offset = 0;
        for (const Tensor & t : tensors) {
            out += bytes_of(t.name) + bytes_of(uint32_t(t.ne.size()));
            for (const uint64_t n : t.ne)
                out += bytes_of(n);
            out += bytes_of(t.type) + bytes_of(uint64_t(offset + t.shift));
            offset += (size(t) + alignment - 1) / alignment * alignment;
        }
        return out;
    }
    std::string file() const {
        std::string out = header();
        if (!tensors.empty()) {
            out.resize((out.size() + alignment - 1) / alignment * alignment);
            for (const Tensor & t : tensors) {
                out.resize(out.size() + (std::min<uint64_t>(size(t), 1 << 20) + alignment - 1) / alignment * alignment);
            }
        }
        out.resize(std::max<int64_t>(0, int64_t(out.size()) + end_shift));
        return out;
    }

  private:
    static uint64_t size(const Tensor & t) {
        uint64_t n = 1;
        for (const uint64_t x : t.ne)
            n *= x;
        return n / block(t.type).first * block(t.type).second;
    }
};

// The names of all bytes, as sentencepiece vocabularies spell them.
inline std::vector<std::string> byte_tokens() {
    std::vector<std::string> result;
    for (int i = 0; i < 256; ++i) {
        static const char digits[] = "0123456789ABCDEF";
        result.push_back(std::string("<0x") + digits[i >> 4] + digits[i & 15] + ">");
    }
    return result;
}

// A complete model of the llama architecture: 2 layers, 64 wide, 4 heads of 16, 2 KV heads, sentencepiece vocabulary.
inline Gguf tiny_llama() {
    Gguf g;
    g.set("general.architecture", "llama");
    g.set("general.type", "model");
    g.set("general.name", "tiny");
    g.set("llama.block_count", 2u);
    g.set("llama.context_length", 128u);
    g.set("llama.embedding_length", 64u);
    g.set("llama.feed_forward_length", 96u);
    g.set("llama.attention.head_count", 4u);
    g.set("llama.attention.head_count_kv", 2u);
    g.set("llama.attention.layer_norm_rms_epsilon", 1e-5f);
    g.set("llama.rope.dimension_count", 16u);
    g.set("llama.rope.freq_base", 10000.0f);
    std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
    std::vector<int32_t> types = {2, 3, 3};
    for (const std::string & token : byte_tokens()) {
        tokens.push_back(token);
        types.push_back(6);
    }
    for (const char * token : {"a", "b", "ab", "\xE2\x96\x81"}) {
        tokens.push_back(token);
        types.push_back(1);
    }
    g.set("tokenizer.ggml.model", "llama");
    g.set("tokenizer.ggml.tokens", string, tokens);
    g.set("tokenizer.ggml.scores", f32, std::vector<float>(tokens.size(), -1.0f));
    g.set("tokenizer.ggml.token_type", i32, types);
    g.set("tokenizer.ggml.bos_token_id", 1u);
    g.set("tokenizer.ggml.eos_token_id", 2u);
    g.set("tokenizer.chat_template", "{{ messages }}");
    const uint64_t n_vocab = tokens.size();
    g.tensors = {{"token_embd.weight", {64, n_vocab}, 8}, {"output_norm.weight", {64}, 0}};
    for (int i = 0; i < 2; ++i) {
        const std::string blk = "blk." + std::to_string(i) + ".";
        g.tensors.push_back({blk + "attn_norm.weight", {64}, 0});
        g.tensors.push_back({blk + "attn_q.weight", {64, 64}, 2});
        g.tensors.push_back({blk + "attn_k.weight", {64, 32}, 2});
        g.tensors.push_back({blk + "attn_v.weight", {64, 32}, 8});
        g.tensors.push_back({blk + "attn_output.weight", {64, 64}, 1});
        g.tensors.push_back({blk + "ffn_norm.weight", {64}, 0});
        g.tensors.push_back({blk + "ffn_gate.weight", {64, 96}, 2});
        g.tensors.push_back({blk + "ffn_up.weight", {64, 96}, 2});
        g.tensors.push_back({blk + "ffn_down.weight", {96, 64}, 30});
    }
    return g;
}

// A directory of this process's own, removed at the end.
class TempDir {
  public:
    TempDir() {
        std::random_device random;
        path_ = std::filesystem::temp_directory_path() / ("pgl_test_" + std::to_string(random()));
        std::filesystem::create_directory(path_);
    }
    ~TempDir() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    std::string write(const std::string & name, const std::string & bytes) const {
        const std::filesystem::path file = path_ / name;
        std::filesystem::remove(file);   // some filesystems flush a file that is truncated and rewritten
        std::ofstream(file, std::ios::binary).write(bytes.data(), std::streamsize(bytes.size()));
        return file.string();
    }
    std::string path() const { return path_.string(); }

  private:
    std::filesystem::path path_;
};

}  // namespace builder
