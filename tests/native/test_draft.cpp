// A drafter: what it finds against a plain search, how it follows a prediction, and what its guesses teach it.
#include "check.h"
#include "engine/draft.h"

#include <algorithm>
#include <random>
#include <string>

using namespace pgl;

namespace {

using Tokens = std::vector<Token>;

Tokens tokens_of(const std::string & letters) {
    return {letters.begin(), letters.end()};
}

std::string letters_of(const Tokens & tokens) {
    return {tokens.begin(), tokens.end()};
}

Drafter drafter_of(const std::string & prompt, const std::string & answer, const std::string & prediction = "") {
    Drafter drafter(tokens_of(prompt), tokens_of(prediction));
    for (const Token token : tokens_of(answer)) {
        drafter.append(token);
    }
    return drafter;
}

void what_followed_before_follows_again() {
    CHECK_EQ(letters_of(drafter_of("the cat sat. the c", "").propose(6).tokens), std::string("at sat"));
    CHECK_EQ(letters_of(drafter_of("abcXY abcZW", "abc").propose(2).tokens), std::string("ZW"));   // the most recent
    CHECK_EQ(letters_of(drafter_of("-abcXY +abcZW", "-abc").propose(2).tokens), std::string("XY"));   // the longest
    CHECK(drafter_of("abcdef", "").propose(5).tokens.empty());   // nothing stood there before
    CHECK(drafter_of("a", "").propose(5).tokens.empty());
    CHECK(drafter_of("abab", "").propose(0).tokens.empty());
}

void a_repetition_goes_on_with_itself() {
    CHECK_EQ(letters_of(drafter_of("xyxy", "").propose(5).tokens), std::string("xyxyx"));
    CHECK_EQ(letters_of(drafter_of("zaaa", "").propose(4).tokens), std::string("aaaa"));
}

// The length of the longest match of the end of `tokens` before it, by looking everywhere.
int32_t longest_by_search(const Tokens & tokens) {
    int32_t longest = 0;
    for (size_t place = 1; place < tokens.size(); ++place) {
        int32_t length = 0;
        while (length < static_cast<int32_t>(place) && tokens[place - 1 - static_cast<size_t>(length)] ==
                                                           tokens[tokens.size() - 1 - static_cast<size_t>(length)]) {
            ++length;
        }
        longest = std::max(longest, length);
    }
    return longest;
}

// Over several growths of its tables: a draft is there whenever the latest token stood before, and its first guess is
// what followed a match as long as the longest. (The search is bounded: few letters would have more places than it
// looks at.)
void the_longest_match_is_found() {
    std::mt19937 random(1);
    Tokens all;
    for (int i = 0; i < 1500; ++i) {
        all.push_back(static_cast<Token>(random() % 300));
    }
    Drafter drafter(all, {});
    size_t n_found = 0;
    for (int i = 0; i < 6000; ++i) {
        // Half of it is copied from somewhere, a piece at a time.
        static size_t from = 0, left = 0;
        if (left == 0) {
            from = random() % (all.size() - 40);
            left = random() % 2 ? 30 : 0;
        }
        const Token next = left > 0 ? all[from] : static_cast<Token>(random() % 300);
        from += left > 0 ? 1 : 0;
        left -= left > 0 ? 1 : 0;
        all.push_back(next);
        drafter.append(next);
        if (i % 20 != 0) {
            continue;
        }
        const Draft draft = drafter.propose(1);
        const int32_t longest = longest_by_search(all);
        check::context = "token " + std::to_string(i);
        CHECK_EQ(draft.tokens.empty(), longest == 0);
        if (longest == 0) {
            continue;
        }
        ++n_found;
        if (longest > 1) {   // else it may go on behind a difference
            all.push_back(draft.tokens[0]);
            CHECK(longest_by_search(all) > longest);   // the guess lengthens the match
            all.pop_back();
        }
    }
    check::context.clear();
    CHECK(n_found > 200);
}

void a_prediction_is_followed_from_its_beginning() {
    CHECK_EQ(letters_of(drafter_of("prompt", "", "hello world").propose(5).tokens), std::string("hello"));
    CHECK_EQ(letters_of(drafter_of("prompt", "hel", "hello world").propose(5).tokens), std::string("lo wo"));
    // One token was another: behind it, it goes on.
    CHECK_EQ(letters_of(drafter_of("prompt", "hello W", "hello world").propose(4).tokens), std::string("orld"));
    // Also where the answer left out more, as soon as it comes back.
    CHECK_EQ(letters_of(drafter_of("", "qrld", "hello world, again").propose(4).tokens), std::string(", ag"));
    CHECK(!drafter_of("", "", "x").propose(4).tokens.empty());
}

void forced_tokens_come_first() {
    Drafter drafter = drafter_of("abcabc", "");
    CHECK_EQ(letters_of(drafter.propose(4, tokens_of("{\"x")).tokens), std::string("{\"x"));
    CHECK_EQ(letters_of(drafter.propose(2, tokens_of("{\"x")).tokens), std::string("{\""));
}

void odds_fall_along_a_draft_and_rise_with_success() {
    Drafter drafter = drafter_of("one two three four five six seven eight nine ten one two", "");
    const Draft first = drafter.propose(10);
    CHECK_EQ(first.odds.size(), first.tokens.size());
    for (size_t i = 0; i < first.odds.size(); ++i) {
        CHECK(first.odds[i] > 0 && first.odds[i] <= (i == 0 ? 1 : first.odds[i - 1]));
    }
    for (int i = 0; i < 400; ++i) {   // all of them come true
        drafter.append(drafter.propose(1).tokens[0]);
    }
    CHECK(drafter.propose(1).odds[0] > 0.97f);
}

// Every match was false: soon none is trusted. This is counted although nobody computes the guesses.
void odds_fall_with_failure() {
    std::mt19937 random(2);
    Drafter drafter({}, {});
    double late = 0;   // sum of the last odds
    int n_late = 0;
    for (int i = 0; i < 3000; ++i) {
        const Draft draft = drafter.propose(1);
        Token next = static_cast<Token>(random() % 50);
        if (!draft.tokens.empty()) {
            late += i > 2000 ? draft.odds[0] : 0;
            n_late += i > 2000 ? 1 : 0;
            next += next == draft.tokens[0] ? 50 : 0;
        }
        drafter.append(next);
    }
    CHECK(n_late > 500 && late / n_late < 0.1);
}

}  // namespace

int main() {
    what_followed_before_follows_again();
    a_repetition_goes_on_with_itself();
    the_longest_match_is_found();
    a_prediction_is_followed_from_its_beginning();
    forced_tokens_come_first();
    odds_fall_along_a_draft_and_rise_with_success();
    odds_fall_with_failure();
    return check::result("draft");
}
