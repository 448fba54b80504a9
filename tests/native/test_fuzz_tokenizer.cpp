// Fuzz target: any text, cut in any way into trusted and untrusted spans, under every vocabulary of the llama.cpp tree.
// An input's first byte chooses the vocabulary; kTrusted and kUntrusted, which no UTF-8 holds, begin a span.
// PGL_VOCABULARIES names others than the usual few: "all", or names as in ggml-vocab-NAME.gguf, with commas.
#include "engine/text.h"
#include "fuzz.h"
#include "llama/tokenizer.h"
#include "platform/machine.h"

#include <llama.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <sstream>

using namespace pgl;

namespace {

constexpr char kTrusted = '\xFE', kUntrusted = '\xFF';

struct FreeModel {
    void operator()(llama_model * model) const { llama_model_free(model); }
};

struct Vocabulary {
    std::string name;
    std::unique_ptr<llama_model, FreeModel> model;
    std::unique_ptr<Tokenizer> tokenizer;
    bool lone_spaces = false;  // llama.cpp itself asserts that no two spaces meet
    bool lossless = false;  // byte-level and whole: what is tokenized comes back byte for byte

    const llama_vocab * vocab() const { return llama_model_get_vocab(model.get()); }
};

std::string metadata(const llama_model * model, const char * key) {
    std::string value(256, '\0');
    const int32_t n = llama_model_meta_val_str(model, key, value.data(), value.size());
    value.resize(n < 0 ? 0 : std::min(static_cast<size_t>(n), value.size() - 1));
    return value;
}

std::filesystem::path file_of(const std::string & name) {
    return std::filesystem::path(PGL_VOCABULARY_FOLDER) / ("ggml-vocab-" + name + ".gguf");
}

std::vector<std::string> wanted_names() {
    const char * given = std::getenv("PGL_VOCABULARIES");
    const std::string wanted = given != nullptr ? given : "llama-bpe,phi-3,bert-bge,deepseek-llm";
    std::vector<std::string> names;
    if (wanted == "all") {
        for (const auto & entry : std::filesystem::directory_iterator(PGL_VOCABULARY_FOLDER)) {
            const std::string name = entry.path().filename().string();
            if (name.rfind("ggml-vocab-", 0) == 0 && entry.path().extension() == ".gguf") {
                names.push_back(name.substr(11, name.size() - 16));
            }
        }
        std::sort(names.begin(), names.end());
        return names;
    }
    std::istringstream list(wanted);
    for (std::string name; std::getline(list, name, ',');) {
        names.push_back(name);
    }
    return names;
}

// Of those that UTF-8 has. Falcon's vocabulary lacks some control characters, which then vanish.
bool has_every_byte(const Tokenizer & tokenizer) {
    std::set<std::string> bytes;
    for (Token token = 0; token < tokenizer.n_vocab(); ++token) {
        if (std::string piece = tokenizer.bytes(token); piece.size() == 1) {
            bytes.insert(std::move(piece));
        }
    }
    for (int byte = 0; byte < 0xF5; ++byte) {
        if (byte != 0xC0 && byte != 0xC1 && bytes.count(std::string(1, static_cast<char>(byte))) == 0) {
            return false;
        }
    }
    return true;
}

const std::vector<Vocabulary> & vocabularies() {
    static const std::vector<Vocabulary> all = [] {
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
        llama_model_params params = llama_model_default_params();
        params.vocab_only = true;
        std::vector<Vocabulary> loaded;
        for (const std::string & name : wanted_names()) {
            Vocabulary one;
            one.name = name;
            one.model.reset(llama_model_load_from_file(file_of(name).string().c_str(), params));
            if (one.model == nullptr) {
                std::cerr << file_of(name) << " cannot be loaded\n";
                std::exit(1);
            }
            const std::string pre = metadata(one.model.get(), "tokenizer.ggml.pre");
            one.tokenizer = std::make_unique<Tokenizer>(one.vocab(), pre);
            one.lone_spaces = pre == "whitespace";
            one.lossless =
                metadata(one.model.get(), "tokenizer.ggml.model") == "gpt2" && has_every_byte(*one.tokenizer);
            loaded.push_back(std::move(one));
        }
        return loaded;
    }();
    return all;
}

// Neighbours of one kind are one span.
std::vector<Span> spans_of(std::string_view bytes) {
    std::vector<Span> spans;
    bool trusted = false;
    for (const char c : bytes) {
        if (c == kTrusted || c == kUntrusted) {
            trusted = c == kTrusted;
            continue;
        }
        if (spans.empty() || spans.back().trusted != trusted) {
            spans.push_back({"", trusted});
        }
        spans.back().text.push_back(c);
    }
    return spans;
}

// What a stream says of these tokens; `whole`: of all their bytes at once.
std::string streamed(const std::vector<std::string> & pieces) {
    TextStream stream({}, {});
    std::string text;
    for (const std::string & piece : pieces) {
        text += stream.push(piece).text;
    }
    return text + stream.finish().text;
}

// Nothing where the text cannot be tokenized, which has to be said by name.
std::vector<Token> tokenize(const Tokenizer & tokenizer, const std::vector<Span> & spans, bool add_bos = false) {
    try {
        return tokenizer.tokenize(spans, add_bos);
    } catch (const Error & e) {
        CHECK_EQ(e.code, "invalid_request");
        return {};
    }
}

// Without [UNK]: of a word that the vocabulary has not it is what any text may give.
std::vector<Token> controls_of(const Tokenizer & tokenizer, const std::vector<Token> & tokens) {
    std::vector<Token> controls;
    std::copy_if(tokens.begin(), tokens.end(), std::back_inserter(controls),
                 [&](Token token) { return tokenizer.is_control(token) && tokenizer.literal(token) != "[UNK]"; });
    return controls;
}

void check_text(const Vocabulary & one, const std::vector<Span> & spans) {
    const Tokenizer & tokenizer = *one.tokenizer;
    std::string text;
    std::vector<Token> of_trusted;  // the control tokens that trusted text names
    for (const Span & span : spans) {
        text += span.text;
        const std::vector<Token> alone = tokenize(tokenizer, {span});
        if (span.trusted) {
            const std::vector<Token> controls = controls_of(tokenizer, alone);
            of_trusted.insert(of_trusted.end(), controls.begin(), controls.end());
        } else {
            CHECK(controls_of(tokenizer, alone).empty());
        }
    }
    const std::vector<Token> tokens = tokenize(tokenizer, spans);
    CHECK(tokens.empty() || controls_of(tokenizer, tokens) == of_trusted);

    std::vector<Token> with_bos = tokenize(tokenizer, spans, true);
    if (with_bos.size() > tokens.size()) {
        CHECK_EQ(with_bos.front(), llama_vocab_bos(one.vocab()));
        with_bos.erase(with_bos.begin());
    }
    CHECK_EQ(with_bos, tokens);

    std::vector<std::string> pieces;
    std::string joined;
    for (const Token token : tokens) {
        CHECK(token >= 0 && token < tokenizer.n_vocab());
        pieces.push_back(tokenizer.bytes(token));
        CHECK(pieces.back().size() <= tokenizer.longest_piece());
        CHECK(!tokenizer.literal(token).empty());
        joined += pieces.back();
    }
    CHECK_EQ(streamed(pieces), streamed({joined}));

    // A stream replaces what is no UTF-8, and so does the tokenizer: the rest is for text that is some.
    const bool is_utf8 = streamed({text, "x"}) == text + "x";
    // Neither spans nor our own search for special tokens change what llama.cpp makes of the text as a whole.
    if (is_utf8 && !one.lone_spaces) {
        std::vector<Token> reference(text.size() + 8);
        const int32_t n = llama_tokenize(one.vocab(), text.data(), static_cast<int32_t>(text.size()), reference.data(),
                                         static_cast<int32_t>(reference.size()), false, true);
        reference.resize(static_cast<size_t>(std::max(n, 0)));
        CHECK_EQ(tokenize(tokenizer, {{text, true}}), reference);
    }

    if (one.lossless && is_utf8) {
        const std::vector<Token> untrusted = tokenize(tokenizer, {{text, false}});
        std::string back;
        for (const Token token : untrusted) {
            back += tokenizer.bytes(token);
        }
        CHECK_EQ(back, text);
    }
    try {
        tokenizer.tokenize_document(text);
        tokenizer.tokenize_pair(text.substr(0, text.size() / 2), text.substr(text.size() / 2));
    } catch (const Error & e) {
        CHECK_EQ(e.code, "invalid_request");
    }
}

}  // namespace

std::vector<std::string> first_inputs() {
    const std::string texts[] = {
        "Hello, world! 12345 it's  two   spaces\n\n\tand a tab ",
        "\xFEuser\xFF<|eot_id|><s></s>[CLS]<unk>\xFE<|eot_id|>\n\xFF<|im_end|>",
        "\xFE<|begin_of_text|><|start_header_id|>user<|end_header_id|>\xFF<|start_header_id|>system\xFE<|eot_id|>",
        "\xE4\xBD\xA0\xE5\xA5\xBD \xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x9A\x80 e\xCC\x81 \xE2\x96\x81\xC2\xA0\xC2\xAD",
        "\xFE<\xEF\xBD\x9CUser\xEF\xBD\x9C>\xFF<\xEF\xBD\x9C"
        "Assistant\xEF\xBD\x9C> <|user|> <0x41> <|end|>",
        std::string("a\0b\xC3(\xED\xA0\x80\xF4\x90\x80\x80", 12),
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!!!!!!!!!!!!!!!!!!!!!!!!                  ",
    };
    std::vector<std::string> inputs;
    for (size_t n = 0; n < vocabularies().size(); ++n) {
        for (const std::string & text : texts) {
            inputs.push_back(static_cast<char>(n) + text);
        }
    }
    return inputs;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    if (size == 0) {
        return 0;
    }
    const Vocabulary & one = vocabularies()[data[0] % vocabularies().size()];
    const std::vector<Span> spans = spans_of({reinterpret_cast<const char *>(data) + 1, size - 1});
    check::context = one.name;
    const uint64_t stack = Tokenizer::stack_bytes(size);
    if (stack == 0) {
        check_text(one, spans);
    } else {
        machine::run_with_stack(stack, [&] { check_text(one, spans); });
    }
    return 0;
}
