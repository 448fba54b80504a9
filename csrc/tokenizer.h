// Prompt spans -> token ids. Template text may produce control tokens; user text never does.
#pragma once

#include "request.h"

#include <array>
#include <string>
#include <string_view>
#include <vector>

struct llama_vocab;

namespace pgl {

class Tokenizer {
  public:
    explicit Tokenizer(const llama_vocab * vocab);

    // Ids of the concatenated spans. Without special-token literals in untrusted text they equal the reference
    // tokenization of the whole string: text between two control tokens is tokenized in one piece, whatever the span
    // borders inside it. `add_bos`: prepend BOS where the vocabulary asks for one and the text did not bring its own.
    // Any thread. Throws Error("invalid_request").
    std::vector<Token> tokenize(const std::vector<Span> & spans, bool add_bos) const;

    // As the model's own reference does it for embedding models: every special token the vocabulary adds.
    std::vector<Token> tokenize_document(const std::string & text) const;

    std::string bytes(Token token) const;   // empty for control tokens; may be half a character
    std::string literal(Token token) const; // the vocabulary's own text, "" for an absent (-1) token
    bool is_end(Token token) const;
    int32_t n_vocab() const { return n_vocab_; }
    size_t longest_piece() const { return longest_piece_; }

  private:
    struct Special {
        std::string text;
        Token id;
        bool user_defined, strip_left, strip_right;
    };

    void append_plain(std::vector<Token> & out, const std::string & text, const std::vector<bool> & trusted) const;
    void append_raw(std::vector<Token> & out, std::string_view text) const;
    const Special * match(std::string_view text, size_t at) const;

    const llama_vocab * vocab_;
    int32_t n_vocab_;
    size_t longest_piece_ = 1;
    std::array<std::vector<Special>, 256> specials_;  // by first byte, longest first
};

}  // namespace pgl
