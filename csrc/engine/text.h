// Text of one answer: token bytes -> whole UTF-8 -> stop strings and filters held back until decided. Pure.
#pragma once

#include "request.h"

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace pgl {

// Text leaves as soon as it is decided, and is decided as soon as it can be: only an unfinished character and text that
// is a proper prefix of some pattern wait. The answer never depends on how its bytes were split into tokens.
//
// Which match counts: the one that starts earliest in the text, whatever the order of the lists. A short pattern found
// inside a longer one that began earlier waits until the longer one is decided. Among matches with one start the first
// to complete (the shortest) counts; a string in both lists is a filter. Text before the match is delivered, nothing
// of it or after it.
//
// Patterns are non-empty valid UTF-8 (the caller refuses others); matching is on bytes of the decoded text.
class TextStream {
  public:
    struct Out {
        std::string text;  // decided now; always valid UTF-8
        // Tokens that this call decided, oldest first: all their bytes are delivered or dropped. Over all calls, and
        // once the answer has ended, they sum to the tokens pushed.
        int32_t n_tokens_done = 0;
        FinishReason reason = FinishReason::none;  // stop or content_filter: the answer has ended
        std::string match;  // what ended it
    };

    // `include_stop`: a stop string that ends the answer is delivered too.
    TextStream(const std::vector<std::string> & stop, const std::vector<std::string> & filter,
               bool include_stop = false);
    ~TextStream();
    TextStream(TextStream &&) noexcept;
    TextStream & operator=(TextStream &&) noexcept;

    // One token's bytes: maybe none, part of a character, or invalid (U+FFFD as Python's decode("utf-8", "replace")).
    // After an end, further tokens are dropped and the reason is repeated. Constant amortised cost per byte.
    Out push(std::string_view bytes);

    // While on hold, stop strings that become complete are text like any other.
    void hold_stops(bool on_hold) { stops_on_hold_ = on_hold; }

    // The text ends here: what is held and no match is released; an unfinished last character is dropped. The reason is
    // none unless a match was waiting for a longer pattern that never completed (or the answer had ended already).
    // What is pushed after this is a text of its own: no pattern and no character reaches across.
    Out finish();

  private:
    class Patterns;

    void decode(unsigned char byte);
    void append(const char * bytes, size_t n);
    Out take();

    std::unique_ptr<const Patterns> patterns_;  // null = none
    int32_t state_ = 0;  // automaton node: the longest suffix that begins some pattern
    FinishReason ended_ = FinishReason::none;

    char partial_[4] = {};  // bytes of an unfinished character, a valid prefix of one
    int n_partial_ = 0, n_missing_ = 0;
    unsigned char next_lo_ = 0x80, next_hi_ = 0xBF;  // range of its next byte

    std::string held_;  // decoded text; [head_, end) is not delivered yet
    size_t head_ = 0;
    uint64_t n_decoded_ = 0;  // bytes of decoded text so far = position of held_'s end

    uint64_t match_start_ = UINT64_MAX;  // earliest match so far, waiting or final
    uint64_t match_length_ = 0;
    FinishReason match_reason_ = FinishReason::none;
    bool include_stop_ = false, stops_on_hold_ = false;

    std::deque<uint64_t> token_ends_;  // undecided tokens: position where each one's text ends
    int32_t n_open_tokens_ = 0;  // newest tokens that end inside the unfinished character
};

}  // namespace pgl
