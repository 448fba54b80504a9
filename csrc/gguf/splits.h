// GGUF splits: the other files of a model that is split over several. Pure.
#pragma once

#include "gguf/file.h"

#include <string>
#include <vector>

namespace pgl {

// The second file and those after it, in order; none for a model in one file. `first` was read from `path`.
// Throws Error("invalid_model") where the numbers or names of the files do not fit together or one is missing.
std::vector<GgufFile> later_splits(const GgufFile & first, const std::string & path);

}  // namespace pgl
