// TextStream against a quadratic reference that re-reads the whole text for every byte.
// With the argument --decode: hex lines in, decoded hex lines out, one byte per token, for a comparison with Python.
#include "check.h"
#include "engine/text.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <set>

using namespace pgl;
using std::string;
using Strings = std::vector<string>;

namespace {

constexpr auto npos = string::npos;
const string replacement = "\xEF\xBF\xBD";
const string nine_replacements = "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD";

// Whether the bytes could begin (or be) the encoding of a Unicode scalar value: complete them with the smallest and the
// largest continuation bytes and see whether that range of code points holds one of the right length.
bool begins_character(const string & s, size_t & length) {
    const auto at = [&](size_t i) { return static_cast<unsigned char>(s[i]); };
    length = at(0) < 0x80 ? 1 : at(0) >= 0xF0 ? 4 : at(0) >= 0xE0 ? 3 : 2;
    if ((at(0) >= 0x80 && at(0) < 0xC0) || at(0) >= 0xF8 || s.size() > length) {
        return false;
    }
    unsigned lo = length == 1 ? at(0) : at(0) & (0x7F >> length), hi = lo;
    for (size_t i = 1; i < length; ++i) {
        if (i < s.size() && (at(i) & 0xC0) != 0x80) {
            return false;
        }
        lo = lo << 6 | (i < s.size() ? at(i) & 0x3F : 0);
        hi = hi << 6 | (i < s.size() ? at(i) & 0x3F : 0x3F);
    }
    static const unsigned smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    lo = std::max(lo, smallest[length]);
    hi = std::min(hi, 0x10FFFFu);
    return lo <= hi && !(lo >= 0xD800 && hi <= 0xDFFF);
}

// Decoded text, and how many of the bytes are an unfinished last character.
string decode(const string & bytes, size_t & n_partial) {
    string text;
    n_partial = 0;
    for (size_t i = 0; i < bytes.size();) {
        size_t n = 0, length = 0, ignored = 0;
        while (i + n < bytes.size() && begins_character(bytes.substr(i, n + 1), ignored)) {
            ++n;
            length = ignored;
        }
        if (n > 0 && n == length) {
            text += bytes.substr(i, n);
        } else if (n > 0 && i + n == bytes.size()) {
            n_partial = n;
        } else {
            text += replacement;
        }
        i += std::max<size_t>(n, 1);
    }
    return text;
}

bool valid_utf8(const string & text) {
    size_t n_partial = 0;
    return decode(text, n_partial) == text && n_partial == 0;
}

struct Verdict {
    size_t deliver = 0;   // bytes of the text that are decided to be delivered
    FinishReason reason = FinishReason::none;
};

// What must have been delivered when exactly this text has been seen.
Verdict judge(const string & text, const Strings & stop, const Strings & filter, bool finished) {
    for (size_t seen = 0; seen <= text.size(); ++seen) {   // after each byte: is the end decided?
        const string prefix = text.substr(0, seen);
        size_t best = npos, best_end = npos, open = seen;
        FinishReason reason = FinishReason::none;
        const auto consider = [&](const Strings & patterns, FinishReason r) {
            for (const string & p : patterns) {
                const size_t at = prefix.find(p);
                if (at != npos && (at < best || (at == best && at + p.size() < best_end))) {
                    best = at;
                    best_end = at + p.size();
                    reason = r;
                }
                for (size_t s = 0; s < open; ++s) {
                    if (seen - s < p.size() && p.compare(0, seen - s, prefix, s, npos) == 0) {
                        open = s;
                    }
                }
            }
        };
        consider(filter, FinishReason::content_filter);
        consider(stop, FinishReason::stop);
        const bool last = seen == text.size();
        if (best != npos && (best <= open || (last && finished))) {
            return {best, reason};
        }
        if (last) {
            return {finished ? seen : open, FinishReason::none};
        }
    }
    return {};
}

// Text position at which each token ends; SIZE_MAX while that is inside an unfinished character.
std::vector<size_t> token_ends(const Strings & tokens) {
    std::vector<size_t> ends;
    for (size_t i = 0; i < tokens.size(); ++i) {
        // The token's text ends where the character holding its last byte does: decode what follows byte by byte until
        // nothing is unfinished any more.
        string bytes;
        for (size_t j = 0; j <= i; ++j) {
            bytes += tokens[j];
        }
        size_t n_partial = 0;
        size_t end = decode(bytes, n_partial).size();
        if (n_partial > 0) {
            string rest;
            for (size_t j = i + 1; j < tokens.size(); ++j) {
                rest += tokens[j];
            }
            const size_t before = end;
            end = SIZE_MAX;
            for (const char c : rest) {
                bytes += c;
                const string text = decode(bytes, n_partial);
                if (text.size() > before) {
                    // The first character after `before` is the one that was unfinished.
                    size_t n = 1;
                    while (!valid_utf8(text.substr(before, n))) {
                        ++n;
                    }
                    end = before + n;
                    break;
                }
            }
        }
        ends.push_back(end);
    }
    return ends;
}

// Feeds the tokens and compares every step with the reference. Returns the joined text.
string compare(const Strings & tokens, const Strings & stop, const Strings & filter) {
    TextStream stream(stop, filter);
    string bytes, joined;
    int32_t n_done = 0;
    size_t n_partial = 0;
    FinishReason reason = FinishReason::none;
    for (size_t i = 0; i < tokens.size(); ++i) {
        const TextStream::Out out = stream.push(tokens[i]);
        CHECK(valid_utf8(out.text));
        bytes += tokens[i];
        joined += out.text;
        n_done += out.n_tokens_done;
        const string text = decode(bytes, n_partial);
        const Verdict want = judge(text, stop, filter, false);
        CHECK_EQ(joined, text.substr(0, want.deliver));
        CHECK_EQ(out.reason, want.reason);
        reason = out.reason;
        int32_t want_done = static_cast<int32_t>(i + 1);
        if (want.reason == FinishReason::none) {
            const auto ends = token_ends({tokens.begin(), tokens.begin() + static_cast<ptrdiff_t>(i) + 1});
            want_done = static_cast<int32_t>(
                std::count_if(ends.begin(), ends.end(), [&](size_t end) { return end <= want.deliver; }));
        }
        CHECK_EQ(n_done, want_done);
    }
    const TextStream::Out out = stream.finish();
    joined += out.text;
    n_done += out.n_tokens_done;
    CHECK(valid_utf8(joined));
    const string text = decode(bytes, n_partial);
    const Verdict want = judge(text, stop, filter, true);
    CHECK_EQ(joined, text.substr(0, want.deliver));
    CHECK_EQ(out.reason, want.reason);
    CHECK(reason == FinishReason::none || out.reason == reason);
    CHECK_EQ(n_done, static_cast<int32_t>(tokens.size()));
    const TextStream::Out again = stream.finish();
    CHECK(again.text.empty() && again.n_tokens_done == 0 && again.reason == out.reason);
    return joined;
}

void decided_cases() {
    struct Case {
        const char * name;
        Strings tokens, stop, filter;
        string text;
        FinishReason reason;
    };
    const auto none = FinishReason::none, stop = FinishReason::stop, filter = FinishReason::content_filter;
    const Case cases[] = {
        {"plain", {"Hello", " world"}, {}, {}, "Hello world", none},
        {"no tokens", {}, {"x"}, {}, "", none},
        {"emoji held as a possible stop is released at the end", {"end ", "👍"}, {"👍👍👍"}, {}, "end 👍", none},
        {"text held behind a letter", {"aXb ", "🎉"}, {"🎉🎉"}, {}, "aXb 🎉", none},
        {"earliest of two in one token", {"one", " three"}, {"ee", " th"}, {}, "one", stop},
        {"the same, list reversed", {"one", " three"}, {" th", "ee"}, {}, "one", stop},
        {"across tokens", {"a<", "|e", "nd|", ">b"}, {"<|end|>"}, {}, "a", stop},
        {"at the very start", {"STOP", "x"}, {"STOP"}, {}, "", stop},
        {"false start, then the stop", {"aaab"}, {"aab"}, {}, "a", stop},
        {"inside an open longer one that completes", {"x ab", "cd"}, {"bc", "abcd"}, {}, "x ", stop},
        {"inside an open longer one that fails", {"x ab", "ce"}, {"bc", "abcd"}, {}, "x a", stop},
        {"inside a longer one still open at the end", {"x ab", "c"}, {"bc", "abcd"}, {}, "x a", stop},
        {"filter inside an open stop", {"abc", "d"}, {"abcd"}, {"bc"}, "", stop},
        {"filter inside a stop that fails", {"abc", "x"}, {"abcd"}, {"bc"}, "a", filter},
        {"same start: the first to complete", {"abc"}, {"abc"}, {"ab"}, "", filter},
        {"same string in both: a filter", {"abc"}, {"b"}, {"b"}, "a", filter},
        {"a stop of one CJK character", {"日本", "語"}, {"本"}, {}, "日", stop},
        {"bytes of an emoji one by one", {"\xF0", "\x9F", "\x91", "\x8D"}, {}, {}, "👍", none},
        {"unfinished character at the end is withheld", {"a\xF0\x9F"}, {}, {}, "a", none},
        {"its lead byte is not the stop", {"a\xE2\x82"}, {"€"}, {}, "a", none},
        {"invalid bytes become U+FFFD and can be matched", {"a\xFF", "b"}, {replacement + "b"}, {}, "a", stop},
        {"overlong, surrogate, too large", {"\xC0\x80\xED\xA0\x80\xF4\x90\x80\x80"}, {}, {}, nine_replacements, none},
        {"a maximal part is one U+FFFD", {"\xF0\x9F\x91", "x"}, {}, {}, replacement + "x", none},
        {"NUL is text", {string("a\0b", 3)}, {}, {}, string("a\0b", 3), none},
        {"control tokens without bytes", {"", "a", "", "b", ""}, {"b"}, {}, "a", stop},
    };
    for (const Case & c : cases) {
        check::context = c.name;
        CHECK_EQ(compare(c.tokens, c.stop, c.filter), c.text);
        TextStream stream(c.stop, c.filter);
        for (const string & token : c.tokens) {
            stream.push(token);
        }
        CHECK_EQ(stream.finish().reason, c.reason);
    }
}

// Text that cannot be part of a match must not wait, and what must wait is released by the byte that decides it.
void latency() {
    check::context = "latency";
    TextStream stream({"<|end|>"}, {});
    CHECK_EQ(stream.push("a").text, string("a"));
    CHECK_EQ(stream.push("<|e").text, string(""));
    CHECK_EQ(stream.push("m").text, string("<|em"));
    const TextStream::Out out = stream.push("b<|end|>c");
    CHECK_EQ(out.text, string("b"));
    CHECK_EQ(out.reason, FinishReason::stop);
    const TextStream::Out late = stream.push("more");
    CHECK(late.text.empty() && late.n_tokens_done == 1 && late.reason == FinishReason::stop);
}

// Every sequence of four bytes drawn from those where the rules change.
void decoder() {
    const string edges = "\x41\x7F\x80\x8F\x90\x9F\xA0\xBF\xC1\xC2\xDF\xE0\xE1\xEC\xED\xEF\xF0\xF1\xF3\xF4\xF5\xFF";
    for (size_t n = 0; n < edges.size() * edges.size() * edges.size() * edges.size(); ++n) {
        string bytes;
        for (size_t rest = n, i = 0; i < 4; ++i, rest /= edges.size()) {
            bytes += edges[rest % edges.size()];
        }
        TextStream stream({}, {});
        size_t n_partial = 0;
        string text = stream.push(bytes.substr(0, n % 5)).text;
        text += stream.push(bytes.substr(n % 5)).text;
        const string want = decode(bytes, n_partial);
        if (text != want) {
            check::context = "decoder";
            CHECK_EQ(text, want);
        }
    }
}

string pick(const Strings & from, std::mt19937 & rng) {
    return from[rng() % from.size()];
}

void random_cases() {
    const Strings alphabets[] = {
        {"a", "b"},
        {"a", "b", "c", " ", "\n"},
        {"é", "e\xCC\x81", "👍", "👍🏽", "👨\xE2\x80\x8D👩\xE2\x80\x8D👧", "日", "本", "語", "a", "\xE2\x80\x8D"},
        {"👍", "👎", "\xF0\x9F\x91", "\xF0\x9F", "\xF0", "\xFF", "\x80", "\xE6\x97", "日", "x", "\xC3", "\xED\xA0\x80"},
        {"<|", "|>", "<", "|", "end", "\nUser:", "\n", "User", ":"},
    };
    size_t n_ended = 0, n_cases = 0;
    for (uint32_t seed = 0; seed < 12000; ++seed) {
        check::context = "seed " + std::to_string(seed);
        std::mt19937 rng(seed);
        const Strings & alphabet = alphabets[rng() % std::size(alphabets)];
        string bytes;
        for (size_t n = rng() % 14; n > 0; --n) {
            bytes += pick(alphabet, rng);
        }
        size_t n_partial = 0;
        const string text = decode(bytes, n_partial);
        const auto patterns = [&](size_t n) {
            Strings result;
            for (; n > 0; --n) {
                string p;
                if (rng() % 2 == 0 && !text.empty()) {   // a piece of the text itself, on characters, maybe spoilt
                    size_t from = rng() % text.size(), to = from + 1 + rng() % 8;
                    const auto inside = [&](size_t i) { return i < text.size() && (text[i] & 0xC0) == 0x80; };
                    while (inside(from))
                        --from;
                    while (inside(to))
                        ++to;
                    p = text.substr(from, to - from);
                    if (rng() % 3 == 0)
                        p += "z";
                } else {
                    do {
                        string ignored = pick(alphabet, rng);
                        p += decode(ignored, n_partial);
                    } while (p.empty() || rng() % 2 == 0);
                }
                result.push_back(p);
            }
            return result;
        };
        const Strings stop = patterns(rng() % 4), filter = patterns(rng() % 3);
        string joined;
        for (int split = 0; split < 3; ++split) {   // whole, byte by byte, at random: one answer
            Strings tokens;
            for (size_t i = 0; i < bytes.size();) {
                const size_t n = split == 0 ? bytes.size() : split == 1 ? 1 : rng() % 5;
                tokens.push_back(bytes.substr(i, n));
                i += n;
            }
            const string now = compare(tokens, stop, filter);
            CHECK(split == 0 || now == joined);
            joined = now;
        }
        Strings reversed(stop.rbegin(), stop.rend());
        CHECK_EQ(compare({bytes}, reversed, filter), joined);
        n_ended += joined != text;
        ++n_cases;
    }
    check::context = "the generator makes both kinds";
    CHECK(n_ended > n_cases / 5 && n_ended < n_cases * 4 / 5);
}

// What comes after finish() is a text of its own, unless the answer has ended.
void texts_in_a_row() {
    const Strings pieces = {"a", "b", "c", "<|", "end", "\xC3", "\x81", "\xE0", "x"};
    const Strings stop = {"<|end", "abxc"}, filter = {"bx", "Á"};
    size_t n_both = 0, n_one = 0;
    for (uint32_t seed = 0; seed < 4000; ++seed) {
        check::context = "texts in a row, seed " + std::to_string(seed);
        std::mt19937 rng(seed);
        TextStream joined(stop, filter);
        const auto say = [](TextStream & stream, const Strings & tokens) {
            TextStream::Out all;
            const auto add = [&all](const TextStream::Out & out) {
                all.text += out.text;
                all.n_tokens_done += out.n_tokens_done;
                all.reason = out.reason;
            };
            for (const string & token : tokens) {
                add(stream.push(token));
            }
            add(stream.finish());
            return all;
        };
        FinishReason ended = FinishReason::none;
        for (int text = 0; text < 3; ++text) {
            Strings tokens(rng() % 5);
            for (string & token : tokens) {
                token = pick(pieces, rng);
            }
            TextStream alone(stop, filter);
            TextStream::Out want = say(alone, tokens);
            if (ended != FinishReason::none) {
                want.text.clear();
                want.reason = ended;
            }
            const TextStream::Out got = say(joined, tokens);
            CHECK_EQ(got.text, want.text);
            CHECK_EQ(got.n_tokens_done, want.n_tokens_done);
            CHECK_EQ(got.reason, want.reason);
            ended = got.reason;
        }
        ++(ended == FinishReason::none ? n_both : n_one);
    }
    check::context = "the generator makes both kinds";
    CHECK(n_both > 100 && n_one > 100);
}

// A stop that is always one byte short, over a long text: what is held stays bounded by the pattern.
void long_text() {
    check::context = "long text";
    const string a(300, 'a');
    TextStream stream({a + "b"}, {});
    size_t n = 0, n_done = 0;
    for (int i = 0; i < 200000; ++i) {
        const TextStream::Out out = stream.push("a");
        n += out.text.size();
        n_done += static_cast<size_t>(out.n_tokens_done);
        if (i > 1000 && n != static_cast<size_t>(i) + 1 - 300) {
            CHECK_EQ(n, static_cast<size_t>(i) + 1 - 300);
            return;
        }
    }
    CHECK_EQ(n_done, n);
    const TextStream::Out out = stream.push("b");
    CHECK_EQ(out.reason, FinishReason::stop);
    CHECK(out.text.empty());
}

// A stop string that is shown, is told, or does not count yet; cut into pieces of every size.
void shown_and_on_hold() {
    for (size_t size = 1; size <= 12; ++size) {
        const auto run = [&](const string & text, TextStream stream) {
            std::pair<string, string> said;
            for (size_t at = 0; at < text.size(); at += size) {
                const auto out = stream.push(std::string_view(text).substr(at, size));
                said.first += out.text;
                said.second += said.second.empty() ? out.match : "";
            }
            const auto out = stream.finish();
            return std::pair(said.first + out.text, said.second.empty() ? out.match : said.second);
        };
        check::context = "pieces of " + std::to_string(size);
        using Said = std::pair<string, string>;
        CHECK(run("one two three", TextStream({"two"}, {})) == Said("one ", "two"));
        CHECK(run("one two three", TextStream({"two"}, {}, true)) == Said("one two", "two"));
        CHECK(run("one two three", TextStream({"x", "three"}, {}, true)) == Said("one two three", "three"));
        CHECK(run("one two three", TextStream({}, {"two"}, true)) == Said("one ", "two"));   // a filter is not shown
        CHECK(run("one two three", TextStream({"four"}, {}, true)) == Said("one two three", ""));
    }
    for (const size_t size : {1, 2, 4, 8}) {   // sizes of which the first eight bytes are whole pieces
        TextStream stream({"one"}, {});
        const string text = "one two one two";
        string said;
        for (size_t at = 0; at < text.size(); at += size) {
            stream.hold_stops(at + size <= 8);
            said += stream.push(std::string_view(text).substr(at, size)).text;
        }
        CHECK_EQ(said + stream.finish().text, "one two ");
    }
}

int decode_lines() {
    for (string line; std::getline(std::cin, line);) {
        TextStream stream({}, {});
        string text;
        for (size_t i = 0; i + 1 < line.size(); i += 2) {
            const char byte = static_cast<char>(std::stoi(line.substr(i, 2), nullptr, 16));
            text += stream.push({&byte, 1}).text;
        }
        text += stream.finish().text;
        for (const char c : text) {
            std::printf("%02x", static_cast<unsigned char>(c));
        }
        std::printf("\n");
    }
    return 0;
}

}  // namespace

int main(int argc, char ** argv) {
    if (argc > 1 && std::strcmp(argv[1], "--decode") == 0) {
        return decode_lines();
    }
    decided_cases();
    latency();
    decoder();
    random_cases();
    texts_in_a_row();
    long_text();
    shown_and_on_hold();
    return check::result("text");
}
