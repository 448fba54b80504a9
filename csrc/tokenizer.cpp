#include "tokenizer.h"

#include "machine.h"

#include <llama.h>

#include <algorithm>

namespace pgl {
namespace {

// std::regex in the pre-tokenizers recurses per character of a run, about 300 bytes of stack each.
constexpr uint64_t kStackPerByte = 640;
constexpr uint64_t kMinStack = uint64_t{64} << 20;
constexpr size_t kSmallText = 512;  // fits any caller's stack

bool is_space(char c) {
    return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\v' || c == '\f';
}

// User-defined tokens are matched by llama.cpp in any text. Those shaped like a marker (<think>, [INST]) could open a
// turn; the rest (runs of blanks, emoji) are ordinary vocabulary.
bool is_marker(const std::string & text) {
    return text.size() > 2 && (text.front() == '<' || text.front() == '[') && (text.back() == '>' || text.back() == ']');
}

}  // namespace

Tokenizer::Tokenizer(const llama_vocab * vocab) : vocab_(vocab), n_vocab_(llama_vocab_n_tokens(vocab)) {
    constexpr int kSpecial = LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_USER_DEFINED | LLAMA_TOKEN_ATTR_UNKNOWN;
    for (Token id = 0; id < n_vocab_; ++id) {
        const std::string text = literal(id);
        longest_piece_ = std::max(longest_piece_, text.size());
        const int attributes = llama_vocab_get_attr(vocab, id);
        if ((attributes & kSpecial) != 0 && !text.empty()) {
            specials_[static_cast<uint8_t>(text[0])].push_back({text, id,
                                                                 (attributes & LLAMA_TOKEN_ATTR_USER_DEFINED) != 0,
                                                                 (attributes & LLAMA_TOKEN_ATTR_LSTRIP) != 0,
                                                                 (attributes & LLAMA_TOKEN_ATTR_RSTRIP) != 0});
        }
    }
    for (auto & list : specials_) {
        std::stable_sort(list.begin(), list.end(),
                         [](const Special & a, const Special & b) { return a.text.size() > b.text.size(); });
    }
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
        throw Error("invalid_request", "token id " + std::to_string(token) + " is not in 0.." + std::to_string(n_vocab_ - 1));
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

const Tokenizer::Special * Tokenizer::match(std::string_view text, size_t at) const {
    for (const Special & special : specials_[static_cast<uint8_t>(text[at])]) {
        if (text.compare(at, special.text.size(), special.text) == 0) {
            return &special;
        }
    }
    return nullptr;
}

std::vector<Token> Tokenizer::tokenize(const std::vector<Span> & spans, bool add_bos) const {
    size_t n_bytes = 0;
    for (const Span & span : spans) {
        n_bytes += span.text.size();
    }
    std::vector<Token> out;
    const auto work = [&] {
        std::string plain;            // text since the last control token
        std::vector<bool> trusted;    // per byte of `plain`
        bool strip_next = false;
        const auto flush = [&] {
            if (!plain.empty()) {
                append_plain(out, plain, trusted);
            }
            plain.clear();
            trusted.clear();
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
                        trusted.push_back(is_trusted);
                    }
                    ++at;
                    continue;
                }
                while (special->strip_left && !plain.empty() && is_space(plain.back())) {
                    plain.pop_back();
                    trusted.pop_back();
                }
                flush();
                out.push_back(special->id);
                strip_next = special->strip_right;
                at += special->text.size();
            }
        }
        flush();
    };
    if (n_bytes <= kSmallText) {
        work();
    } else {
        machine::run_with_stack(std::max(kMinStack, n_bytes * kStackPerByte), work);
    }
    const Token bos = llama_vocab_bos(vocab_);
    if (add_bos && bos >= 0 && llama_vocab_get_add_bos(vocab_) && (out.empty() || out.front() != bos)) {
        out.insert(out.begin(), bos);
    }
    return out;
}

// Cuts `text` inside every user-defined marker that untrusted bytes take part in, so that it stays text.
void Tokenizer::append_plain(std::vector<Token> & out, const std::string & text, const std::vector<bool> & trusted) const {
    size_t begin = 0;
    for (size_t at = 0; at < text.size(); ++at) {
        const Special * special = match(text, at);
        if (special == nullptr || !special->user_defined || !is_marker(special->text)) {
            continue;
        }
        const auto first = trusted.begin() + static_cast<std::ptrdiff_t>(at);
        if (!std::all_of(first, first + static_cast<std::ptrdiff_t>(special->text.size()), [](bool t) { return t; })) {
            append_raw(out, std::string_view(text).substr(begin, at + 1 - begin));  // a marker opens with one ASCII byte
            begin = at + 1;
        }
    }
    append_raw(out, std::string_view(text).substr(begin));
}

void Tokenizer::append_raw(std::vector<Token> & out, std::string_view text) const {
    if (text.empty()) {
        return;
    }
    const size_t old_size = out.size();
    const auto n_bytes = static_cast<int32_t>(text.size());
    out.resize(old_size + text.size() + 2);  // no token is shorter than a byte; SPM may add a space
    int32_t n = 0;
    try {
        n = llama_tokenize(vocab_, text.data(), n_bytes, out.data() + old_size,
                           static_cast<int32_t>(out.size() - old_size), false, false);
        if (n < 0) {
            out.resize(old_size + static_cast<size_t>(-n));
            n = llama_tokenize(vocab_, text.data(), n_bytes, out.data() + old_size, -n, false, false);
        }
    } catch (const std::exception & e) {
        throw Error("invalid_request", std::string("the text cannot be tokenized: ") + e.what());
    }
    if (n < 0) {
        throw Error("invalid_request", "the text cannot be tokenized");
    }
    out.resize(old_size + static_cast<size_t>(n));
}

std::vector<Token> Tokenizer::tokenize_document(const std::string & text) const {
    std::vector<Token> out(text.size() + 8);
    const auto work = [&] {
        try {
            int32_t n = llama_tokenize(vocab_, text.data(), static_cast<int32_t>(text.size()), out.data(),
                                       static_cast<int32_t>(out.size()), true, false);
            out.resize(static_cast<size_t>(std::abs(n)));
            if (n < 0) {
                llama_tokenize(vocab_, text.data(), static_cast<int32_t>(text.size()), out.data(), -n, true, false);
            }
        } catch (const std::exception & e) {
            throw Error("invalid_request", std::string("the text cannot be tokenized: ") + e.what());
        }
    };
    machine::run_with_stack(std::max(kMinStack, text.size() * kStackPerByte), work);
    return out;
}

}  // namespace pgl
