// Which instruction set this process uses: chosen once from CPUID and PGL_KERNELS.
#pragma once

#include <vector>

#include "kernels/isa.h"

namespace pgl::kernels {

/// `wish` is PGL_KERNELS or null. Unknown or unsupported wishes give the best this CPU has.
void choose_isa(const char * wish);
/// Null when off.
const Isa * active_isa();
/// Those that products may use, the active one first: it alone if it was asked for by name.
std::vector<const Isa *> usable_isas();
/// Changes it while no graph runs: after a failed self-test, and for tests. The packed weights are the same for all.
void use_isa(const Isa * isa);
/// The instruction set of that name if this CPU runs it, else null. For tests and benchmarks.
const Isa * find_isa(const char * name);

}  // namespace pgl::kernels
