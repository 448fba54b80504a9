#include "engine/draft.h"

#include <algorithm>
#include <cstddef>

namespace pgl {
namespace {

constexpr int32_t kLongest = 64;        // tokens of a match: a longer one is as good
constexpr int32_t kMostPlaces = 16;     // where the same three tokens stood before, that are looked at
constexpr int32_t kWorthResuming = 4;   // tokens that were followed before a difference
constexpr float kMemory = 64;           // guesses, until the older ones count half
constexpr float kHopeless = 0.02f;      // odds of a token that is not worth guessing

// The shortest match of each ground.
constexpr std::array<int32_t, 8> kLengths = {1, 2, 3, 4, 6, 10, 16, 32};

uint64_t hash(const Token * end, int n) {
    auto value = static_cast<uint64_t>(n);
    for (int i = 1; i <= n; ++i) {
        value = (value ^ static_cast<uint32_t>(end[-i])) * 0x9E3779B97F4A7C15ULL;
        value ^= value >> 29;
    }
    return value;
}

}  // namespace

void Record::add(bool came_true) {
    if (all >= kMemory) {
        right /= 2;
        all /= 2;
    }
    right += came_true ? 1 : 0;
    all += 1;
}

// The records begin as ten guesses whose outcome is what the answers of benchmarks/workloads.py show: a token that
// stood somewhere before says little, three in a row say much.
Drafter::Drafter(const std::vector<Token> & prompt, const std::vector<Token> & prediction)
    : tokens_(prompt), records_{{{1.5f, 10},
                                 {3.5f, 10},
                                 {7, 10},
                                 {7.5f, 10},
                                 {8, 10},
                                 {9, 10},
                                 {9.5f, 10},
                                 {9.7f, 10},
                                 {9, 10},  // predicted
                                 {5, 10},  // resumed
                                 {9.5f, 10}}},  // forced
      predicted_(!prediction.empty()) {
    if (predicted_) {
        source_.next = static_cast<int32_t>(tokens_.size());
        tokens_.insert(tokens_.end(), prediction.begin(), prediction.end());
    }
}

int Drafter::ground_of(int32_t length) {
    return static_cast<int>(std::upper_bound(kLengths.begin(), kLengths.end(), length) - kLengths.begin()) - 1;
}

void Drafter::append(Token token) {
    if (n_heard_ < draft_.tokens.size()) {
        const bool right = draft_.tokens[n_heard_] == token;
        records_[static_cast<size_t>(grounds_[n_heard_])].add(right);
        n_heard_ = right ? n_heard_ + 1 : draft_.tokens.size();  // the rest was guessed from what was not said
    }
    resumed_ = {};
    if (source_.next >= 0) {
        if (tokens_[static_cast<size_t>(source_.next)] == token) {
            ++source_.next;
            ++source_.length;
        } else {
            if (predicted_ || source_.length >= kWorthResuming) {
                resumed_ = {source_.next + 1, 1};
            }
            source_ = {};
        }
    }
    predicted_ = predicted_ && source_.next >= 0;
    tokens_.push_back(token);
}

// Where the n tokens before the next place to be noted stood last; -1 = nowhere. The table is open addressed.
int32_t & Drafter::head(int n) {
    std::vector<int32_t> & heads = heads_[static_cast<size_t>(n - 1)];
    const Token * end = tokens_.data() + previous_.size();
    size_t slot = hash(end, n) & (heads.size() - 1);
    while (heads[slot] >= 0 && !std::equal(end - n, end, tokens_.data() + heads[slot] - n)) {
        slot = (slot + 1) & (heads.size() - 1);
    }
    return heads[slot];
}

// Notes every place that has a token behind it.
void Drafter::index() {
    if (heads_[0].size() < 2 * tokens_.size()) {
        size_t n = 1024;
        while (n < 3 * tokens_.size()) {
            n *= 2;
        }
        for (std::vector<int32_t> & heads : heads_) {
            heads.assign(n, -1);
        }
        previous_.clear();
    }
    while (previous_.size() < tokens_.size()) {
        const auto place = static_cast<int32_t>(previous_.size());
        int32_t before = -1;
        for (int n = 1; n <= std::min(3, place); ++n) {
            int32_t & latest = head(n);
            before = latest;  // of the longest, in the end
            latest = place;
        }
        previous_.push_back(place < 3 ? -1 : before);
    }
}

// How many tokens before `place` are the latest ones.
int32_t Drafter::length_at(int32_t place) const {
    int32_t length = 0;
    const Token *here = tokens_.data() + tokens_.size(), *there = tokens_.data() + place;
    while (length < std::min(place, kLongest) && here[-1 - length] == there[-1 - length]) {
        ++length;
    }
    return length;
}

Drafter::Source Drafter::longest_match() {
    index();  // the next place to be noted is the end now
    Source best;
    for (int n = std::min<int>(3, static_cast<int>(tokens_.size())); n >= 1 && best.length < n; --n) {
        int32_t place = head(n);
        for (int32_t i = 0; place >= 0 && i < kMostPlaces && best.length < kLongest; ++i) {
            if (const int32_t length = length_at(place); length > best.length) {
                best = {place, length};
            }
            place = n == 3 ? previous_[static_cast<size_t>(place)] : -1;
        }
    }
    return best;
}

// What follows from `source`. `ground` -1: its length says how far it is trusted.
void Drafter::guess(int32_t limit, Source source, int ground) {
    float odds = 1;
    while (static_cast<int32_t>(draft_.tokens.size()) < limit) {
        const int rests_on = ground < 0 ? ground_of(source.length) : ground;
        odds *= records_[static_cast<size_t>(rests_on)].odds();
        if (odds < kHopeless && !draft_.tokens.empty()) {
            return;  // the first one is guessed all the same, so that it is seen when it comes true again
        }
        // Where the answer repeats itself, the guess goes on with itself.
        const auto at = static_cast<size_t>(source.next);
        draft_.tokens.push_back(at < tokens_.size() ? tokens_[at] : draft_.tokens[at - tokens_.size()]);
        draft_.odds.push_back(odds);
        grounds_.push_back(rests_on);
        ++source.next;
        ++source.length;
    }
}

const Draft & Drafter::propose(int32_t limit, const std::vector<Token> & forced) {
    draft_ = {};
    grounds_.clear();
    n_heard_ = 0;
    if (!forced.empty()) {
        float odds = 1;
        for (size_t i = 0; i < forced.size() && static_cast<int32_t>(i) < limit; ++i) {
            draft_.tokens.push_back(forced[i]);
            draft_.odds.push_back(odds *= records_[kForced].odds());
            grounds_.push_back(kForced);
        }
        return draft_;
    }
    const Source match = predicted_ ? Source{} : longest_match();
    if (match.length > source_.length) {
        source_ = match;
    }
    if (source_.next >= 0 && !(resumed_.next >= 0 && source_.length <= 1)) {
        guess(limit, source_, predicted_ ? kPredicted : -1);
    } else if (resumed_.next >= 0) {
        source_ = resumed_;
        guess(limit, source_, kResumed);
    }
    return draft_;
}

}  // namespace pgl
