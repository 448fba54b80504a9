// Thought: a letter is a token here, and an answer its text.
#include "engine/thought.h"

#include "check.h"

#include <string>
#include <vector>

using namespace pgl;

namespace {

constexpr Token kEnding = 1000;  // and those that follow: "</t>" in two tokens, and "!" before the answer
const std::vector<Token> ending{kEnding, kEnding + 1, kEnding + 2};
const std::vector<std::string> ending_text{"</", "t>", "!"};

ThoughtLimit limit(int32_t max_tokens, bool opened = false) {
    ThoughtLimit result;
    result.max_tokens = max_tokens;
    result.opening = "<t>";
    result.closing = "</t>";
    result.answer = "!";
    result.opened = opened;
    return result;
}

/// What comes of a model that wants to say `wish`: whatever is due comes first. `n`: tokens in all.
std::string answer(const ThoughtLimit & limit, const std::string & wish, size_t n) {
    Thought thought(limit, ending);
    std::string text;
    for (size_t i = 0, said = 0; i < n && said < wish.size(); ++i) {
        const Token due = thought.due();
        const std::string piece =
            due >= 0 ? ending_text[static_cast<size_t>(due - kEnding)] : std::string(1, wish[said++]);
        thought.said(due >= 0 ? due : piece[0], piece);
        text += piece;
    }
    return text;
}

void a_thought_ends_where_its_budget_does() {
    CHECK(answer(limit(4), "<t>abcdefgh", 100) == "<t>abcd</t>!efgh");
    CHECK(answer(limit(4), "\n <t>abcdefgh", 100) == "\n <t>abcd</t>!efgh");
    CHECK(answer(limit(4, true), "abcdefgh", 100) == "abcd</t>!efgh");
    CHECK(answer(limit(0, true), "abcdefgh", 100) == "</t>!abcdefgh");
    CHECK(answer(limit(0), "<t>abcdefgh", 100) == "<t></t>!abcdefgh");
}

void one_that_ends_before_is_left_alone() {
    for (const std::string wish :
         {"<t>abc</t>defghijk", "<t>a</t>b<t>cdefghijk", "abcdefghijkl", "<abcdefghi", "a<t>bcdefghijk"}) {
        CHECK(answer(limit(7), wish, 100) == wish);
    }
    CHECK(answer(limit(6, true), "ab</t>cdefghijk", 100) == "ab</t>cdefghijk");
    CHECK(answer(limit(-1), "<t>abcdefghijk", 100) == "<t>abcdefghijk");
}

void tags_may_come_in_any_pieces() {
    Thought thought(limit(2), ending);
    for (const std::string piece : {" ", "<t", ">a", "b<", "/t"}) {
        CHECK(thought.due() == -1);
        thought.said(1, piece);
    }
    CHECK(thought.due() == kEnding);  // two tokens after the one with the opening tag, and no closing one yet
    thought.said(1, ">");  // a grammar, or a caller, let another one come
    CHECK(thought.due() == -1);
}

void no_character_is_cut() {
    Thought thought(limit(2, true), ending);
    for (const std::string piece : {"a", "\xF0\x9F", "\x98", "\x80"}) {
        CHECK(thought.due() == -1);
        thought.said(1, piece);
    }
    CHECK(thought.due() == kEnding);
    Thought broken(limit(1, true), ending);
    for (int i = 0; i < 4; ++i) {
        CHECK(broken.due() == -1);
        broken.said(1, "\xF0");  // never a character
    }
    CHECK(broken.due() == kEnding);
}

void what_leads_elsewhere_in_the_midst_of_the_ending_is_let_go() {
    Thought thought(limit(0, true), ending);
    thought.said(kEnding, "</");
    CHECK(thought.due() == kEnding + 1);
    thought.said(1, "x");
    CHECK(thought.due() == -1);
}

}  // namespace

int main() {
    a_thought_ends_where_its_budget_does();
    one_that_ends_before_is_left_alone();
    tags_may_come_in_any_pieces();
    no_character_is_cut();
    what_leads_elsewhere_in_the_midst_of_the_ending_is_let_go();
    return check::result("thought");
}
