// Checks for the native tests: a failure prints file, line and values, and the test goes on (to a limit).
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

namespace check {

inline int n_failed = 0;
inline int n_checked = 0;
inline std::string context;   // what the case at hand is (a seed, a row's name); printed with its failures

template <typename T> void show(std::ostream & os, const T & value) {
    if constexpr (std::is_enum_v<T>) {
        os << static_cast<long long>(value);
    } else if constexpr (std::is_integral_v<T> && sizeof(T) == 1) {
        os << static_cast<int>(value);   // a number, not a character
    } else {
        os << value;
    }
}

// Bytes outside printable ASCII as \xNN: texts under test are often not valid UTF-8.
inline void show(std::ostream & os, const std::string & value) {
    static const char digits[] = "0123456789abcdef";
    os << '"';
    for (const char c : value) {
        const auto byte = static_cast<unsigned char>(c);
        if (byte >= 0x20 && byte < 0x7f && c != '"' && c != '\\') {
            os << c;
        } else {
            os << "\\x" << digits[byte >> 4] << digits[byte & 15];
        }
    }
    os << '"';
}

template <typename T> void show(std::ostream & os, const std::vector<T> & values) {
    os << '[';
    for (size_t i = 0; i < values.size(); ++i) {
        os << (i > 0 ? ", " : "");
        show(os, values[i]);
    }
    os << ']';
}

inline void fail(const char * file, int line, const std::string & what) {
    std::cerr << file << ':' << line << ": " << what << '\n';
    if (!context.empty()) {
        std::cerr << "    in " << context << '\n';
    }
#if defined(PGL_LIBFUZZER)
    std::abort();   // libFuzzer keeps the input of a crash, and of nothing else
#endif
    if (++n_failed >= 20) {
        std::cerr << "20 failures; stopping\n";
        std::exit(1);
    }
}

template <typename A, typename B> void equal(const A & a, const B & b, const char * text, const char * file, int line) {
    ++n_checked;
    if (!(a == b)) {
        std::ostringstream os;
        os << text << "\n    left:  ";
        show(os, a);
        os << "\n    right: ";
        show(os, b);
        fail(file, line, os.str());
    }
}

inline void near(double a, double b, double tolerance, const char * text, const char * file, int line) {
    ++n_checked;
    if (!(std::fabs(a - b) <= tolerance)) {   // NaN fails
        std::ostringstream os;
        os << text << ": " << a << " and " << b << " differ by " << std::fabs(a - b) << ", allowed " << tolerance;
        fail(file, line, os.str());
    }
}

// The last line of main: prints the tally. A test that checked nothing has failed.
inline int result(const char * name) {
    std::cout << name << ": " << n_checked << " checks, " << n_failed << " failed\n";
    return n_failed == 0 && n_checked > 0 ? 0 : 1;
}

}  // namespace check

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        ++check::n_checked;                                                                                            \
        if (!(condition))                                                                                              \
            check::fail(__FILE__, __LINE__, #condition);                                                               \
    } while (0)
#define CHECK_EQ(a, b) check::equal((a), (b), #a " == " #b, __FILE__, __LINE__)
#define CHECK_NEAR(a, b, tolerance) check::near((a), (b), (tolerance), #a " near " #b, __FILE__, __LINE__)
