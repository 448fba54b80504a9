// Fields: a border struct lists its own once, with names and ranges; bindings and checks visit that list.
#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>

namespace pgl {

// The numbers that a field may hold: low..high, or from above low.
struct Range {
    double low, high;
    bool above_low = false;   // low itself is refused

    constexpr bool holds(double value) const { return (above_low ? value > low : value >= low) && value <= high; }
};

// What a field's bytes are, where they are no text: a path as the operating system spells it, or anything.
struct PathBytes {};
struct RawBytes {};

// Calls visit(name, pointer to member, what its list says beside...) for each field of T, in the order that Python
// sees.
template <typename T, typename Visit> constexpr void visit_fields(Visit && visit) {
    T::fields(std::forward<Visit>(visit));
}

// The same for one object: visit(name, its member, ...).
template <typename T, typename Visit> constexpr void visit_fields(T & object, Visit && visit) {
    std::remove_const_t<T>::fields(
        [&](const char * name, auto member, const auto &... about) { visit(name, object.*member, about...); });
}

struct IgnoreField {
    template <typename... Args> constexpr void operator()(const Args &...) const {}
};
template <typename T, typename = void> inline constexpr bool has_fields = false;
template <typename T> inline constexpr bool has_fields<T, std::void_t<decltype(T::fields(IgnoreField{}))>> = true;

// The word for a value of an enum, out of the names() that stand beside it.
template <typename Enum> constexpr const char * name_of(Enum value) {
    return names(value)[static_cast<size_t>(value)];
}

}  // namespace pgl
