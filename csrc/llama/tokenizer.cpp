#include "llama/tokenizer.h"

#include <llama.h>

#include <algorithm>
#include <array>
#include <new>

namespace pgl {
namespace {

// std::regex in the pre-tokenizers recurses per character of a run, about 300 bytes of stack each.
constexpr uint64_t kStackPerByte = 640;
constexpr uint64_t kMinStack = uint64_t{64} << 20;
constexpr size_t kSmallText = 512;  // fits any caller's stack

bool is_space(char c) {
    return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\v' || c == '\f';
}

// llama.cpp matches user-defined tokens in any text, which is right for tags, emoji and runs of blanks. Some files give
// their turn markers (<|user|>) that kind too, and those a user's text must not open.
// The second bar is DeepSeek's, U+FF5C.
bool is_turn_marker(const std::string & text) {
    return text.size() > 3 && (text.compare(0, 2, "<|") == 0 || text.compare(0, 4, "<\xEF\xBD\x9C") == 0) &&
           text.back() == '>';
}

}  // namespace

Tokenizer::Tokenizer(const llama_vocab * vocab, const std::string & pre_tokenizer)
    : vocab_(vocab), n_vocab_(llama_vocab_n_tokens(vocab)), lone_spaces_(pre_tokenizer == "whitespace") {
    constexpr int kSpecial = LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_USER_DEFINED | LLAMA_TOKEN_ATTR_UNKNOWN;
    std::vector<Token> markers;
    for (Token id = 0; id < n_vocab_; ++id) {
        const std::string text = literal(id);
        longest_piece_ = std::max(longest_piece_, text.size());
        const int attributes = llama_vocab_get_attr(vocab, id);
        if ((attributes & kSpecial) != 0 && !text.empty()) {
            specials_[static_cast<uint8_t>(text[0])].push_back(
                {text, id, (attributes & LLAMA_TOKEN_ATTR_LSTRIP) != 0, (attributes & LLAMA_TOKEN_ATTR_RSTRIP) != 0});
            if ((attributes & LLAMA_TOKEN_ATTR_USER_DEFINED) != 0 && is_turn_marker(text)) {
                markers.push_back(id);
            }
        }
    }
    for (auto & list : specials_) {
        std::stable_sort(list.begin(), list.end(),
                         [](const Special & a, const Special & b) { return a.text.size() > b.text.size(); });
    }
    if (markers.empty()) {
        return;
    }
    std::array<Token, 256> letters;
    letters.fill(-1);
    for (Token id = 0; id < n_vocab_; ++id) {
        if (const std::string piece = bytes(id); piece.size() == 1 && letters[static_cast<uint8_t>(piece[0])] < 0) {
            letters[static_cast<uint8_t>(piece[0])] = id;
        }
    }
    for (const Token id : markers) {
        std::vector<Token> & spelled = spelled_[id];
        for (const char c : literal(id)) {
            if (const Token letter = letters[static_cast<uint8_t>(c)]; letter >= 0) {
                spelled.push_back(letter);
            }
        }
    }
}

uint64_t Tokenizer::stack_bytes(size_t n_bytes) {
    return n_bytes <= kSmallText ? 0 : std::max(kMinStack, n_bytes * kStackPerByte);
}

std::string Tokenizer::literal(Token token) const {
    if (token < 0 || token >= n_vocab_) {
        return "";
    }
    const char * text = llama_vocab_get_text(vocab_, token);
    return text == nullptr ? "" : text;
}

std::string Tokenizer::bytes(Token token) const {
    if (token < 0 || token >= n_vocab_) {
        throw Error("invalid_request",
                    "token id " + std::to_string(token) + " is not in 0.." + std::to_string(n_vocab_ - 1));
    }
    std::string piece(32, '\0');
    int32_t n = llama_token_to_piece(vocab_, token, piece.data(), static_cast<int32_t>(piece.size()), 0, false);
    if (n < 0) {
        piece.resize(static_cast<size_t>(-n));
        n = llama_token_to_piece(vocab_, token, piece.data(), static_cast<int32_t>(piece.size()), 0, false);
    }
    piece.resize(static_cast<size_t>(std::max(n, 0)));
    return piece;
}

bool Tokenizer::is_end(Token token) const {
    return llama_vocab_is_eog(vocab_, token);
}

bool Tokenizer::is_control(Token token) const {
    const bool is_named = (llama_vocab_get_attr(vocab_, token) & LLAMA_TOKEN_ATTR_CONTROL) != 0;
    return (is_named && !literal(token).empty()) || spelled_.count(token) > 0;
}

const Tokenizer::Special * Tokenizer::match(std::string_view text, size_t at) const {
    for (const Special & special : specials_[static_cast<uint8_t>(text[at])]) {
        if (text.compare(at, special.text.size(), special.text) == 0) {
            return &special;
        }
    }
    return nullptr;
}

std::vector<Token> Tokenizer::tokenize(const std::vector<Span> & spans, bool add_bos) const {
    std::vector<Token> out;
    std::string plain;            // text since the last control token
    bool all_trusted = true;      // that text
    bool strip_next = false;
    const auto flush = [&] {
        append_plain(out, plain, all_trusted);
        plain.clear();
        all_trusted = true;
    };
    for (size_t s = 0; s < spans.size();) {
        // Adjacent spans of one kind are one text: a literal may cross their border.
        const bool is_trusted = spans[s].trusted;
        std::string text;
        for (; s < spans.size() && spans[s].trusted == is_trusted; ++s) {
            text += spans[s].text;
        }
        for (size_t at = 0; at < text.size();) {
            const Special * special = is_trusted ? match(text, at) : nullptr;
            if (special == nullptr) {
                if (!(strip_next && is_space(text[at]))) {
                    strip_next = false;
                    plain.push_back(text[at]);
                    all_trusted = all_trusted && is_trusted;
                }
                ++at;
                continue;
            }
            while (special->strip_left && !plain.empty() && is_space(plain.back())) {
                plain.pop_back();
            }
            flush();
            out.push_back(special->id);
            strip_next = special->strip_right;
            at += special->text.size();
        }
    }
    flush();
    const Token bos = llama_vocab_bos(vocab_);
    if (add_bos && bos >= 0 && llama_vocab_get_add_bos(vocab_) && (out.empty() || out.front() != bos)) {
        out.insert(out.begin(), bos);
    }
    return out;
}

// The special tokens of trusted text were cut out before this. A turn marker that the tokenizer still finds was written
// by the user, at least in part, and is no marker: it is spelled letter by letter.
void Tokenizer::append_plain(std::vector<Token> & out, const std::string & text, bool trusted) const {
    if (trusted || spelled_.empty()) {
        append(out, text, false);
        return;
    }
    std::vector<Token> tokens;
    append(tokens, text, false);
    for (const Token token : tokens) {
        if (const auto marker = spelled_.find(token); marker != spelled_.end()) {
            out.insert(out.end(), marker->second.begin(), marker->second.end());
        } else {
            out.push_back(token);
        }
    }
}

void Tokenizer::append(std::vector<Token> & out, std::string_view text, bool add_special) const {
    if (lone_spaces_ && !add_special) {
        // llama.cpp asserts that no two of them meet; a space joins with nothing, so to cut beside it changes nothing.
        for (size_t space; (space = text.find(' ')) != std::string_view::npos && text.size() > 1;) {
            append(out, text.substr(0, std::max<size_t>(space, 1)), false);
            text.remove_prefix(std::max<size_t>(space, 1));
        }
    }
    if (text.empty() && !add_special) {
        return;
    }
    const size_t old_size = out.size();
    const auto n_bytes = static_cast<int32_t>(text.size());
    out.resize(old_size + text.size() + 8);  // no token is shorter than a byte; a few may be added
    int32_t n = 0;
    try {
        n = llama_tokenize(vocab_, text.data(), n_bytes, out.data() + old_size,
                           static_cast<int32_t>(out.size() - old_size), add_special, false);
        if (n < 0) {
            out.resize(old_size + static_cast<size_t>(-n));
            n = llama_tokenize(vocab_, text.data(), n_bytes, out.data() + old_size, -n, add_special, false);
        }
    } catch (const std::bad_alloc &) {
        throw;   // says nothing about the text
    } catch (const std::exception & e) {
        throw Error("invalid_request", std::string("the text cannot be tokenized: ") + e.what());
    }
    if (n < 0) {
        throw Error("invalid_request", "the text cannot be tokenized");
    }
    out.resize(old_size + static_cast<size_t>(n));
}

std::vector<Token> Tokenizer::tokenize_document(const std::string & text) const {
    std::vector<Token> out;
    if (!lone_spaces_) {
        append(out, text, true);
        return out;
    }
    std::vector<Token> frame;   // what stands around an empty text
    append(frame, "", true);
    const auto text_at = frame.begin() + (llama_vocab_get_add_bos(vocab_) && !frame.empty() ? 1 : 0);
    out.assign(frame.begin(), text_at);
    append(out, text, false);
    out.insert(out.end(), text_at, frame.end());
    return out;
}

std::vector<Token> Tokenizer::tokenize_pair(const std::string & query, const std::string & document) const {
    const Token separator = llama_vocab_sep(vocab_);
    std::vector<Token> out = tokenize_document(query);
    const bool ends_with_separator = !out.empty() && out.back() == separator && !llama_vocab_get_add_eos(vocab_);
    if (llama_vocab_get_add_sep(vocab_) && separator >= 0 && !ends_with_separator) {
        out.push_back(separator);
    }
    std::vector<Token> second = tokenize_document(document);
    const bool begins = !second.empty() && second.front() == llama_vocab_bos(vocab_);
    out.insert(out.end(), second.begin() + (begins ? 1 : 0), second.end());
    return out;
}

}  // namespace pgl
