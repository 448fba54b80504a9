// GGUF vocabulary: validation of the tokenizer's tables. Pure.
#pragma once

#include "gguf/file.h"

#include <cstdint>
#include <string>

namespace pgl {

struct GgufVocab {
    std::string tokenizer;     // tokenizer.ggml.model
    uint32_t n_tokens = 0;
};

// Refuses (pgl::Error "invalid_model", as check_gguf) a vocabulary that the tokenizers could not survive.
// vocab_size_key names the key that counts the tokens of a model without a vocabulary.
GgufVocab check_vocab(const GgufFile & file, const std::string & vocab_size_key);

}  // namespace pgl
