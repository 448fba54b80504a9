// Thought: how far the thinking of an answer has come, and what ends it once it has taken its share of tokens.
#pragma once

#include "request.h"

#include <cstddef>
#include <string>
#include <vector>

namespace pgl {

class Thought {
  public:
    // `ending`: the closing tag, and what begins the answer after it, in tokens of the model.
    Thought(const ThoughtLimit & limit, std::vector<Token> ending);

    // The token that has to come next; -1 = any may.
    Token due() const;

    // After every token of the answer, the one that was due or another. `text`: its bytes, of a control token its name.
    void said(Token token, const std::string & text);

  private:
    enum class State { before, within, ending, over };

    bool is_spent() const;
    void open();
    void go_on(const std::string & text);

    ThoughtLimit limit_;
    std::vector<Token> ending_;
    State state_;
    std::string seen_;      // before: all that was said; within: what may be a beginning of the closing tag
    int32_t n_tokens_ = 0;  // of the thought, without its tags
    int32_t n_missing_ = 0; // bytes of the character that the last token has left unfinished
    size_t n_ended_ = 0;    // of `ending_`, that have been said
};

}  // namespace pgl
