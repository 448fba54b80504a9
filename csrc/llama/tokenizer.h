// Prompt spans -> token ids. Template text may produce control tokens; user text never does.
#pragma once

#include "request.h"

#include <array>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

struct llama_vocab;

namespace pgl {

class Tokenizer {
  public:
    // `pre_tokenizer`: tokenizer.ggml.pre, "" if the file names none.
    Tokenizer(const llama_vocab * vocab, const std::string & pre_tokenizer);

    // Ids of the concatenated spans. Without special-token literals in untrusted text they equal the reference
    // tokenization of the whole string: text between two control tokens is tokenized in one piece, whatever the span
    // borders inside it. `add_bos`: prepend BOS where the vocabulary asks for one and the text did not bring its own.
    // Any thread, on a stack of stack_bytes(). Throws Error("invalid_request").
    std::vector<Token> tokenize(const std::vector<Span> & spans, bool add_bos) const;

    // As the model's own reference does it for embedding models: every special token the vocabulary adds.
    std::vector<Token> tokenize_document(const std::string & text) const;

    // A query and a document as one text, with the tokens that cross-encoders are trained to see around and between
    // them.
    std::vector<Token> tokenize_pair(const std::string & query, const std::string & document) const;

    // What tokenizing so many bytes may take of the stack; 0 = any thread's stack will do.
    static uint64_t stack_bytes(size_t n_bytes);

    std::string bytes(Token token) const;   // empty for control tokens; may be half a character
    std::string literal(Token token) const; // the vocabulary's own text, "" for an absent (-1) token
    bool is_end(Token token) const;
    // Whether it is no text but steers a conversation: a control token, or a turn marker that a file calls its own.
    bool is_control(Token token) const;
    int32_t n_vocab() const { return n_vocab_; }
    size_t longest_piece() const { return longest_piece_; }

  private:
    struct Special {
        std::string text;
        Token id;
        bool strip_left, strip_right;
    };

    void append_plain(std::vector<Token> & out, const std::string & text, bool trusted) const;
    void append(std::vector<Token> & out, std::string_view text, bool add_special) const;
    const Special * match(std::string_view text, size_t at) const;

    const llama_vocab * vocab_;
    int32_t n_vocab_;
    size_t longest_piece_ = 1;
    bool lone_spaces_;                                // the pre-tokenizer must not see two spaces side by side
    std::array<std::vector<Special>, 256> specials_;  // by first byte, longest first
    // User-defined turn markers -> the tokens of the same text, letter by letter.
    std::unordered_map<Token, std::vector<Token>> spelled_;
};

}  // namespace pgl
