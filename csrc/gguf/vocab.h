// GGUF vocabulary: validation of the tokenizer's tables. Pure.
#pragma once

#include "gguf/file.h"

#include <cstdint>
#include <string>

namespace pgl {

// Refuses (pgl::Error "invalid_model", as check_gguf) a vocabulary that the tokenizers could not survive.
// Returns the number of its tokens; `vocab_size_key` names the key that counts those of a model without a vocabulary.
uint32_t check_vocab(const GgufFile & file, const std::string & vocab_size_key);

}  // namespace pgl
