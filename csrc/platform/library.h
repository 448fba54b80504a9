// Shared libraries: those opened while the program runs, which stay open until it ends, and the one we are part of.
#pragma once

#include <string>

namespace pgl::platform {

// The address of `symbol` in the library at `path`. Throws Error("missing_library") naming both where there is no such
// file, it cannot be loaded here, or it lacks the symbol. The library is never closed: its threads may outlive a
// caller.
void * symbol_of(const std::string & path, const char * symbol);

bool is_file(const std::string & path);

// The folder of the library or program that this code is linked into; "." where the system does not tell.
std::string own_folder();

}  // namespace pgl::platform
