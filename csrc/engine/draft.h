// Drafter: guesses the next tokens of one answer from what was said before. Pure.
#pragma once

#include "request.h"

#include <array>
#include <cstdint>
#include <vector>

namespace pgl {

// Guessed tokens. odds[i]: the chance that tokens 0..i all come true.
struct Draft {
    std::vector<Token> tokens;
    std::vector<float> odds;
};

// How often guesses of one kind came true: the older ones count less.
struct Record {
    float right = 0, all = 0;

    void add(bool came_true);
    float odds() const { return right / all; }
};

// What the drafts of one answer may cost: at first a quarter of a pass, later a small share of all its passes and
// whatever earlier drafts gained. So drafts that do not come true cannot slow an answer down by more than that share.
class DraftBudget {
  public:
    // Milliseconds that the next draft may add to a pass with one row, which takes `alone_ms`.
    double may_lose_ms(double alone_ms) const { return kStart * alone_ms + kShare * passes_ms_ + gained_ms_; }

    void passed(double ms) { passes_ms_ += ms; }
    // A pass with a draft cost so much, and gave so many tokens.
    void drafted(double cost_ms, int32_t n_tokens, double alone_ms) { gained_ms_ += n_tokens * alone_ms - cost_ms; }
    void lost(double ms) { gained_ms_ -= ms; }   // to make a draft

  private:
    static constexpr double kStart = 0.25, kShare = 0.02;
    double passes_ms_ = 0, gained_ms_ = 0;
};

// Lookup drafting (Saxena 2023, prompt lookup decoding): what followed the latest tokens where they stood before, in
// the prompt, in a predicted answer or in the answer itself, follows again. The longest match counts, of equal ones the
// most recent. How often a match of some length was right says how far the next is trusted; every guess is counted,
// also one that nobody computed.
class Drafter {
  public:
    // `prediction`: what the answer may repeat from its first token on; may be empty.
    Drafter(const std::vector<Token> & prompt, const std::vector<Token> & prediction);

    void append(Token token);   // of the answer

    // At most `limit` tokens; none where nothing was found. `forced`: tokens that come next as far as anybody knows, as
    // under a grammar; the draft is these.
    const Draft & propose(int32_t limit, const std::vector<Token> & forced = {});

  private:
    // What a guess rests on. Matches are counted by length, which grows with each token that comes true.
    static constexpr int kMatches = 8;
    enum Ground : int { kPredicted = kMatches, kResumed, kForced, kGrounds };
    // Where the answer seems to be copied from: it goes on with the token at `next`, as it did for `length` tokens.
    struct Source {
        int32_t next = -1;
        int32_t length = 0;
    };

    static int ground_of(int32_t length);
    void index();
    int32_t & head(int n);
    int32_t length_at(int32_t end) const;
    Source longest_match();
    void guess(int32_t limit, Source source, int ground);

    std::vector<Token> tokens_;  // prompt, prediction, answer
    // A place is the number of tokens before it. The last place behind each one, two and three tokens, by their hash;
    // and for every place the one before it behind the same three.
    std::array<std::vector<int32_t>, 3> heads_;
    std::vector<int32_t> previous_;

    std::array<Record, kGrounds> records_;
    Draft draft_;
    std::vector<int> grounds_;  // of each token of the draft
    size_t n_heard_ = 0;  // tokens of the draft that were compared with the answer
    Source source_, resumed_;  // resumed: behind a difference to what was followed before
    bool predicted_;  // all of the answer so far was as predicted
};

}  // namespace pgl
