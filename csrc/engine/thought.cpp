#include "engine/thought.h"

#include <algorithm>
#include <utility>

namespace pgl {

namespace {

// How many bytes a text in UTF-8 lacks at its end, where `before` were lacking before it.
int32_t missing_bytes(const std::string & text, int32_t before) {
    for (const char c : text) {
        const auto byte = static_cast<unsigned char>(c);
        const bool continues = (byte & 0xC0) == 0x80;
        before = continues ? std::max(before - 1, 0) : byte >= 0xF0 ? 3 : byte >= 0xE0 ? 2 : byte >= 0xC0 ? 1 : 0;
    }
    return before;
}

}  // namespace

Thought::Thought(const ThoughtLimit & limit, std::vector<Token> ending)
    : limit_(limit), ending_(std::move(ending)), state_(limit.opened ? State::within : State::before) {
    if (limit_.max_tokens < 0 || ending_.empty()) {
        state_ = State::over;
    }
}

Token Thought::due() const {
    return is_spent() || state_ == State::ending ? ending_[n_ended_] : -1;
}

// A character that is not finished is waited for, as long as it may be one: no more than three tokens.
bool Thought::is_spent() const {
    const int32_t n_over = n_tokens_ - limit_.max_tokens;
    return state_ == State::within && n_over >= 0 && (n_missing_ == 0 || n_over >= 3);
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
        n_missing_ = missing_bytes(text, n_missing_);
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
