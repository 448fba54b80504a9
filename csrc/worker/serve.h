// Serve: an engine at work for another process, which speaks to it over a pair of pipes.
#pragma once

namespace pgl {

// Until the other process says close, or is gone; then ends this process. What goes wrong beyond a request is written
// to `reason`, a descriptor, before the process ends: a failed assertion's text, an exception nobody caught.
[[noreturn]] void serve(int in, int out, int reason);

}  // namespace pgl
