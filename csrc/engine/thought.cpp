#include "engine/thought.h"

#include <algorithm>
#include <utility>

namespace pgl {

Thought::Thought(const ThoughtLimit & limit, std::vector<Token> ending)
    : limit_(limit), ending_(std::move(ending)), state_(limit.opened ? State::within : State::before) {
    if (limit_.max_tokens < 0 || ending_.empty()) {
        state_ = State::over;
    }
}

Token Thought::due() const {
    const bool spent = state_ == State::within && n_tokens_ >= limit_.max_tokens;
    return spent || state_ == State::ending ? ending_[n_ended_] : -1;
}

void Thought::said(Token token, const std::string & text) {
    if (token == due()) {
        state_ = ++n_ended_ == ending_.size() ? State::over : State::ending;
        return;
    }
    if (state_ == State::ending) {  // a grammar has led elsewhere
        state_ = State::over;
    } else if (state_ == State::before) {
        seen_ += text;
        open();
    } else if (state_ == State::within) {
        ++n_tokens_;
        go_on(text);
    }
}

// Blanks may come before the opening tag, and nothing else: then the answer has no thought.
void Thought::open() {
    const size_t at = std::min(seen_.find_first_not_of(" \t\r\n"), seen_.size());
    const std::string begun = seen_.substr(at, limit_.opening.size());
    if (begun == limit_.opening) {
        state_ = State::within;
        go_on(std::exchange(seen_, {}).substr(at + begun.size()));
    } else if (limit_.opening.compare(0, begun.size(), begun) != 0) {
        state_ = State::over;
    }
}

void Thought::go_on(const std::string & text) {
    seen_ += text;
    if (seen_.find(limit_.closing) != std::string::npos) {
        state_ = State::over;
    } else if (seen_.size() >= limit_.closing.size()) {
        seen_.erase(0, seen_.size() - limit_.closing.size() + 1);
    }
}

}  // namespace pgl
