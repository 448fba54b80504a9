#include "engine/dry.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <unordered_map>

namespace pgl {
namespace {

// For each i > 0: how many tokens from i on equal those from the beginning on (the Z function; Gusfield 1997).
std::vector<int32_t> common_with_beginning(const std::vector<Token> & text) {
    const auto n = static_cast<int32_t>(text.size());
    std::vector<int32_t> common(text.size(), 0);
    int32_t left = 0, right = 0;   // the stretch reaching furthest that equals a beginning
    for (int32_t i = 1; i < n; ++i) {
        int32_t same = i < right ? std::min(right - i, common[static_cast<size_t>(i - left)]) : 0;
        while (i + same < n && text[static_cast<size_t>(same)] == text[static_cast<size_t>(i + same)]) {
            ++same;
        }
        common[static_cast<size_t>(i)] = same;
        if (i + same > right) {
            left = i;
            right = i + same;
        }
    }
    return common;
}

}  // namespace

void penalise_repetition(float * logits, const SamplingParams & params, const std::vector<Token> & history,
                         const std::unordered_set<Token> & breakers) {
    const size_t n_seen = params.dry_penalty_last_n < 0
                              ? history.size()
                              : std::min(history.size(), static_cast<size_t>(params.dry_penalty_last_n));
    // Backwards, so that what was said last is the beginning.
    const std::vector<Token> recent(history.rbegin(), history.rbegin() + static_cast<std::ptrdiff_t>(n_seen));
    const auto breaks = [&](Token token) { return breakers.count(token) > 0; };
    const auto most = static_cast<int32_t>(std::find_if(recent.begin(), recent.end(), breaks) - recent.begin());
    if (most < params.dry_allowed_length) {
        return;
    }
    const std::vector<int32_t> common = common_with_beginning(recent);
    std::unordered_map<Token, int32_t> longest;   // what followed a repetition -> its length
    for (size_t i = 1; i < recent.size(); ++i) {
        const int32_t length = std::min(common[i], most);
        const Token next = recent[i - 1];
        if (length >= params.dry_allowed_length && !breaks(next)) {
            longest[next] = std::max(longest[next], length);
        }
    }
    for (const auto & [token, length] : longest) {
        const float power = std::pow(params.dry_base, static_cast<float>(length - params.dry_allowed_length));
        logits[token] -= std::min(params.dry_multiplier * power, std::numeric_limits<float>::max());
    }
}

}  // namespace pgl
