// Our CPU compute kernels as the engine sees them: register, switch per load, name, self-test.
#pragma once

#include <string>

namespace pgl::kernels {

/// Puts our buffer type first in ggml's CPU list. Idempotent and thread-safe. Must run before the first model or
/// adapter load of the process: llama.cpp copies that list once. Reads PGL_KERNELS (off|scalar|avx2|avxvnni|avx512)
/// once; a value this CPU cannot honour falls back to the best it can.
void register_backend();

/// From now on ggml's CPU buffers are pages that take memory when they are first written. A cache for the whole context
/// of every stream is then as large as what it holds, and opening one takes no time: ggml writes zeros over all of its
/// own. Once per process, before the first context.
void use_lazy_host_buffers();

/// The calling thread's switch, for the models it loads and the graphs it plans: off leaves every operation to ggml.
/// Weights already loaded are not touched.
void set_enabled(bool enabled);

/// The same for every thread, for good: what a failed self-test does.
void disable_for_all();

/// Call it before every pass that llama.cpp computes on the calling thread. What an earlier one planned and never came
/// to compute, because it was stopped or failed, is forgotten: its tensors may be gone.
void begin_pass();

/// What the graphs that the calling thread planned since watch_foreign() leave, first of all, to ggml's own kernels in
/// a way that may depend on how many rows there are: the operation and its weights. "" = nothing: then a row's bits do
/// not depend on the others.
void watch_foreign();
std::string foreign_operation();

/// The instruction set in use: "avx512-vnni", "avx-vnni", "avx2", "scalar" or "off".
const char * isa();

/// Call it when the weights of a model are loaded, before its first graph. Times the ways to multiply them by one to
/// eight tokens, once per process and type, in some tens of milliseconds, and uses the fastest from then on. All give
/// the same bits. Without this call rules of thumb decide.
void measure_forms();

/// Multiplies small matrices of every type with the instruction sets in use and with the scalar reference. Returns an
/// empty string, or what differed; then the kernels are off for every later load.
std::string self_test();

}  // namespace pgl::kernels
