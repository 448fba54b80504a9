// GGUF vocabulary: rules for the tokens, their types and the special ids. What they forbid ends the process while the
// loader builds its tables, or at the first text that is tokenized.
#include "gguf/vocab.h"

#include "gguf/facts.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <initializer_list>

namespace pgl {

namespace {

using Type = GgufFile::Type;
using Value = GgufFile::Value;

const Value * array_of(const GgufFile & file, std::string_view name, std::initializer_list<Type> types) {
    const Value * value = file.find(name);
    if (value != nullptr && (!value->is_array || std::count(types.begin(), types.end(), value->type) == 0)) {
        std::string allowed;
        for (const Type type : types) {
            allowed += (allowed.empty() ? "array of " : " or ") + std::string(GgufFile::type_name(type));
        }
        refuse("key", name, (value->is_array ? "an array of " : "a ") + std::string(GgufFile::type_name(value->type)),
               allowed);
    }
    return value;
}

// The byte a token like <0x0A> stands for, else -1.
int token_byte(std::string_view token) {
    const auto digit = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1; };
    if (token.size() != 6 || token.substr(0, 3) != "<0x" || token[5] != '>') {
        return -1;
    }
    const int high = digit(token[3]), low = digit(token[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

// RWKV tokens are written escaped. The tokenizer walks on from a first byte that begins any token, and does not come
// back if nothing on the way is one: so each such byte must be a token itself.
void rwkv_first_bytes(const std::vector<std::string_view> & tokens) {
    bool begins[256] = {}, whole[256] = {};
    for (const std::string_view token : tokens) {
        if (token.empty()) {
            begins[size_t{'['}] = true;   // renamed, as in unique_tokens
            continue;
        }
        size_t used = 1;
        int byte = static_cast<unsigned char>(token[0]);
        if (byte == '\\') {
            const auto digit = [&](size_t i) { return token[i] >= 'a' ? token[i] - 'a' + 10 : token[i] - '0'; };
            used = token.size() > 1 && token[1] == 'x' ? 4 : 2;
            if (token.size() < used) {
                continue;   // stands for nothing
            }
            const char c = token[1];
            byte = used == 4 ? digit(2) * 16 + digit(3) : c == 't' ? '\t' : c == 'n' ? '\n' : c == 'r' ? '\r' : c;
            byte &= 0xFF;
        }
        begins[byte] = true;
        whole[byte] = whole[byte] || token.size() == used;
    }
    for (int byte = 0; byte < 256; ++byte) {
        if (begins[byte] && !whole[byte]) {
            char text[64];
            std::snprintf(text, sizeof(text), "without the byte 0x%02X, which begins a token",
                          static_cast<unsigned>(byte));
            refuse("key", "tokenizer.ggml.tokens", text, "a token for every byte that begins one");
        }
    }
}

void unique_tokens(const std::vector<std::string_view> & tokens) {
    std::vector<std::string> renamed;   // the loader gives empty tokens a name, which may clash
    renamed.reserve(static_cast<size_t>(std::count(tokens.begin(), tokens.end(), std::string_view())));
    struct Piece {
        size_t hash;
        std::string_view text;
        uint32_t id;
    };
    // Sorted by hash: no choice of tokens makes this slow, as it could a hash table.
    std::vector<Piece> entries;
    entries.reserve(tokens.size());
    for (size_t i = 0; i < tokens.size(); ++i) {
        std::string_view text = tokens[i];
        if (text.empty()) {
            renamed.push_back("[EMPTY_" + std::to_string(i) + "]");
            text = renamed.back();
        }
        entries.push_back({std::hash<std::string_view>()(text), text, static_cast<uint32_t>(i)});
    }
    std::sort(entries.begin(), entries.end(), [](const Piece & a, const Piece & b) {
        return a.hash != b.hash ? a.hash < b.hash : a.text != b.text ? a.text < b.text : a.id < b.id;
    });
    std::string duplicates;
    const Piece * first = nullptr;
    size_t n = 0;
    for (size_t i = 1; i < entries.size(); ++i) {
        if (entries[i].text == entries[i - 1].text && entries[i].hash == entries[i - 1].hash) {
            first = first == nullptr ? &entries[i] : first;
            if (++n <= 8) {
                duplicates += (n > 1 ? ", " : "") + std::to_string(entries[i].id);
            }
        }
    }
    if (first != nullptr) {
        try {
            refuse("key", "tokenizer.ggml.tokens",
                   std::to_string(n) + " tokens twice, such as token " + std::to_string(first->id) + ", " +
                       std::string(first->text),
                   "unique tokens");
        } catch (Error & error) {
            error.details["duplicates"] = duplicates;
            throw;
        }
    }
}

void special_ids(const GgufFile & file, const facts::Tokenizer & tokenizer, uint64_t n_tokens) {
    // The loader falls back to its default for an id out of range. Released files have such padding and separator ids,
    // which is harmless; a wrong end token would make the answer run on.
    const auto resolve = [&](const char * name, int preset, bool strict) {
        const std::string id_key = std::string("tokenizer.ggml.") + name + "_token_id";
        const auto id = file.u32(id_key);
        if (id && *id >= n_tokens && *id != UINT32_MAX && strict) {
            refuse("key", id_key, std::to_string(*id), range(0, n_tokens - 1));
        }
        return (id && *id < n_tokens) || (preset >= 0 && static_cast<uint64_t>(preset) < n_tokens);
    };
    const std::string_view pre = file.string("tokenizer.ggml.pre").value_or("");
    const bool bpe = tokenizer.vocab == facts::Vocab::bpe;
    const bool has_bos =
        resolve("bos", bpe && facts::contains(facts::pre_without_default_bos, pre) ? -1 : tokenizer.bos, true);
    const bool has_eos = resolve("eos", tokenizer.eos, true);
    const bool has_sep = resolve("seperator", tokenizer.sep, false);   // spelt so in the format
    resolve("eot", -1, true);
    resolve("eom", -1, true);
    const bool add_bos = file.boolean("tokenizer.ggml.add_bos_token")
                             .value_or(tokenizer.add_bos || (bpe && facts::contains(facts::pre_with_bos, pre)));
    const bool add_eos = file.boolean("tokenizer.ggml.add_eos_token").value_or(tokenizer.add_eos);
    const bool wpm = tokenizer.vocab == facts::Vocab::wpm;
    const bool adds = tokenizer.vocab != facts::Vocab::other;   // the others never add any
    if (adds && !has_bos && (add_bos || wpm || tokenizer.name == "gemma4")) {
        refuse("key", "tokenizer.ggml.bos_token_id", "missing, and it is to be added", range(0, n_tokens - 1));
    }
    if (adds && !has_eos && add_eos && !wpm) {
        refuse("key", "tokenizer.ggml.eos_token_id", "missing, and it is to be added", range(0, n_tokens - 1));
    }
    if (wpm && !has_sep) {
        refuse("key", "tokenizer.ggml.seperator_token_id", "missing, and it is to be added", range(0, n_tokens - 1));
    }
}

}  // namespace

uint32_t check_vocab(const GgufFile & file, const std::string & vocab_size_key) {
    const auto model = file.string("tokenizer.ggml.model");
    const facts::Tokenizer * tokenizer = nullptr;
    for (const facts::Tokenizer & row : facts::tokenizers) {
        if (model && row.name == *model) {
            tokenizer = &row;
        }
    }
    if (tokenizer == nullptr) {
        refuse("key", "tokenizer.ggml.model", model ? std::string(*model) : "missing", "a tokenizer of this build");
    }
    constexpr uint64_t max_tokens = 1024 * 1024, max_token_bytes = 1024;
    if (tokenizer->vocab == facts::Vocab::none) {
        const uint32_t n = file.u32(vocab_size_key).value_or(0);
        if (n > max_tokens) {
            refuse("key", vocab_size_key, std::to_string(n), range(0, max_tokens));
        }
        return n;
    }

    const std::string tokens_key = "tokenizer.ggml.tokens";
    const Value * list = array_of(file, tokens_key, {Type::string});
    if (list == nullptr || list->n < 1 || list->n > max_tokens) {
        refuse("key", tokens_key, list == nullptr ? "missing" : "of " + std::to_string(list->n) + " tokens",
               range(1, max_tokens) + " tokens");
    }
    std::vector<std::string_view> tokens;
    tokens.reserve(list->n);
    GgufStrings strings(*list);
    bool has_byte[256] = {};
    for (uint64_t i = 0; i < list->n; ++i) {
        std::string_view token = strings.next();
        token = token.substr(0, token.find('\0'));   // the loader reads C strings
        if (token.size() > max_token_bytes) {
            refuse("key", tokens_key, "token " + std::to_string(i) + " of " + std::to_string(token.size()) + " bytes",
                   "at most " + std::to_string(max_token_bytes) + " bytes each");
        }
        if (token.size() == 1) {
            has_byte[static_cast<unsigned char>(token[0])] = true;
        } else if (token_byte(token) >= 0) {
            has_byte[token_byte(token)] = true;
        }
        tokens.push_back(token);
    }
    unique_tokens(tokens);
    if (tokenizer->vocab == facts::Vocab::spm) {
        for (int byte = 0; byte < 256; ++byte) {
            if (!has_byte[byte]) {
                char text[16];
                std::snprintf(text, sizeof(text), "without <0x%02X>", static_cast<unsigned>(byte));
                refuse("key", tokens_key, text, "a token for every byte");
            }
        }
    }
    if (tokenizer->name == "rwkv") {
        rwkv_first_bytes(tokens);
    }

    if (const Value * scores = array_of(file, "tokenizer.ggml.scores", {Type::f32, Type::i32})) {
        if (scores->n < list->n) {
            refuse("key", scores->key, "of " + std::to_string(scores->n), "at least " + std::to_string(list->n));
        }
        for (uint64_t i = 0; scores->type == Type::f32 && i < scores->n; ++i) {
            if (!std::isfinite(GgufFile::element<float>(*scores, i))) {
                refuse("key", scores->key, "not finite at token " + std::to_string(i), "finite numbers");
            }
        }
    }
    if (const Value * types = array_of(file, "tokenizer.ggml.token_type", {Type::i32})) {
        constexpr int32_t byte_type = 6;
        if (types->n < list->n) {
            refuse("key", types->key, "of " + std::to_string(types->n), "at least " + std::to_string(list->n));
        }
        for (uint64_t i = 0; i < list->n; ++i) {
            const auto type = GgufFile::element<int32_t>(*types, i);
            if (type < 0 || type > byte_type) {   // 0, undefined, is harmless and was written once
                refuse("key", types->key, std::to_string(type) + " at token " + std::to_string(i), range(0, byte_type));
            }
            if (type != byte_type) {
                continue;
            }
            if (tokenizer->vocab == facts::Vocab::wpm) {
                refuse("key", types->key, "byte at token " + std::to_string(i), "no byte tokens in this vocabulary");
            }
            if (tokenizer->name != "rwkv" && token_byte(tokens[i]) < 0) {
                refuse("key", types->key, "byte at token " + std::to_string(i) + ", " + std::string(tokens[i]),
                       "byte tokens of the form <0x00>..<0xFF>");
            }
        }
    }
    if (tokenizer->vocab == facts::Vocab::bpe) {
        const Value * merges = array_of(file, "tokenizer.ggml.merges", {Type::string});
        if (merges == nullptr && file.string("tokenizer.ggml.pre").value_or("") != "kimi-k2") {
            refuse("key", "tokenizer.ggml.merges", "missing", "pairs of tokens");
        }
        GgufStrings pairs(merges != nullptr ? *merges : Value{});
        for (uint64_t i = 0; merges != nullptr && i < merges->n; ++i) {
            const std::string_view pair = pairs.next();
            if (pair.find(' ', 1) == std::string_view::npos) {
                refuse("key", "tokenizer.ggml.merges", std::string(pair) + " at " + std::to_string(i),
                       "two tokens with a space between");
            }
        }
    }
    special_ids(file, *tokenizer, list->n);
    return static_cast<uint32_t>(list->n);
}

}  // namespace pgl
