// DRY: lowers what would go on repeating what was said before (p-e-w, "DRY: a modern repetition penalty", 2024, in
// text-generation-webui's pull request 5677).
#pragma once

#include "request.h"

#include <unordered_set>
#include <vector>

namespace pgl {

// Where the last n tokens stand earlier in `history` too, the token that followed there loses
// dry_multiplier * dry_base ^ (n - dry_allowed_length), once n reaches dry_allowed_length. No repetition reaches across
// a token of `breakers`. Linear in the tokens looked at.
void penalise_repetition(float * logits, const SamplingParams & params, const std::vector<Token> & history,
                         const std::unordered_set<Token> & breakers);

}  // namespace pgl
