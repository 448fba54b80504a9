// Last words: what a process that is about to end says why.
#pragma once

#include <string>

namespace pgl {

// ggml's failed assertions and exceptions that nobody catches are written to this descriptor before they end the
// process. Process-wide.
void speak_last_words_to(int fd);

// Writes them now. Does nothing before speak_last_words_to().
void last_words(const std::string & text);

}  // namespace pgl
