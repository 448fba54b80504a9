// A shared library that is opened while the program runs, and stays open until it ends.
#pragma once

#include <string>

namespace pgl::platform {

// The address of `symbol` in the library at `path`. Throws Error("missing_library") naming both where there is no such
// file, it cannot be loaded here, or it lacks the symbol. The library is never closed: its threads may outlive a
// caller.
void * symbol_of(const std::string & path, const char * symbol);

}  // namespace pgl::platform
