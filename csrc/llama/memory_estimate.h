// Memory estimate: what a model would take, found by a dry run: everything is made as for a load, and nothing
// allocated.
#pragma once

#include "request.h"

#include <string>

namespace pgl {

// Takes about as long as reading the file's header. Throws Error: not_found, invalid_model, invalid_request.
MemoryEstimate estimate_memory(const std::string & path, const EngineOptions & options);

}  // namespace pgl
