// Ranges: refuses a struct whose numbers are outside what its list of fields states.
#pragma once

#include "request.h"

#include <cstdio>
#include <string>

namespace pgl {

// "0..100", or "> 0 and <= 100".
inline std::string text_of(const Range & range) {
    char text[64];
    std::snprintf(text, sizeof(text), range.above_low ? "> %.15g and <= %.15g" : "%.15g..%.15g", range.low, range.high);
    return text;
}

template <typename T> void check_range(const char * name, T value, const Range & range) {
    if (!range.holds(static_cast<double>(value))) {
        const std::string given = std::to_string(value), allowed = text_of(range);
        throw Error("invalid_request", std::string(name) + " must be " + allowed + ", got " + given,
                    {{"field", name}, {"value", given}, {"allowed", allowed}});
    }
}

// Fields that state none.
template <typename T> void check_range(const char *, const T &) {}
template <typename T> void check_range(const char *, const T &, PathBytes) {}

// Throws Error("invalid_request") for the first field outside its range, NaN included.
template <typename T> void check_ranges(const T & object) {
    visit_fields(object, [](const char * name, const auto & value, const auto &... about) {
        check_range(name, value, about...);
    });
}

}  // namespace pgl
