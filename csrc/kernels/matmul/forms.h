// Which of the ways to compute a product with few tokens is used: rules of thumb until they are measured on this CPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/isa.h"
#include "kernels/matmul/layout.h"

namespace pgl::kernels {

/// How far ahead of the reads codes are prefetched, in a product that passes over its weights once: not at all (the
/// hardware does it), a few KB, or two row groups.
enum class Ahead : int32_t { none, near, far };

/// All forms give the same bits.
struct Form {
    const Isa * isa;
    Ahead ahead;

    bool operator==(const Form & other) const { return isa == other.isa && ahead == other.ahead; }
};

constexpr int64_t max_measured_tokens = 8;

/// The form of a product of weights whose row groups have `run` bytes of codes each.
Form form_of(Type type, int64_t run, int64_t n_tokens);
/// Every form that this process may use.
std::vector<Form> candidate_forms();

/// Times the candidates for rows of that length, unless that was done in this process, and uses the fastest from now
/// on where it is clearly faster than the rule's. `memory` stands in for weights and is only read; the larger, the less
/// of it is in a cache. A few milliseconds; nothing changes if it is too small to tell.
void measure_forms(Type type, int64_t row_length, const uint8_t * memory, size_t size);
/// For tests: uses this form, or the rule again.
void set_form(Type type, int64_t run, int64_t n_tokens, Form form);
void forget_forms();

}  // namespace pgl::kernels
