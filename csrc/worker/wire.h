// Wire: structs of the border as bytes and back, by their lists of fields. Both ends are of one build, so that no field
// carries a name. What comes from a worker may be anything: it has opened a stranger's file.
#pragma once

#include "request.h"

#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace pgl::wire {

class Packer {
  public:
    template <typename T> Packer & add(const T & value) {
        if constexpr (has_fields<T>) {
            visit_fields(value, [this](const char *, const auto & member, const auto &...) { this->add(member); });
        } else {
            static_assert(std::is_arithmetic_v<T> || std::is_enum_v<T>);
            bytes_.append(reinterpret_cast<const char *>(&value), sizeof value);
        }
        return *this;
    }
    Packer & add(const std::string & text) {
        add(static_cast<uint64_t>(text.size()));
        bytes_ += text;
        return *this;
    }
    template <typename T> Packer & add(const std::vector<T> & items) {
        add(static_cast<uint64_t>(items.size()));
        if constexpr (std::is_arithmetic_v<T>) {
            bytes_.append(reinterpret_cast<const char *>(items.data()), items.size() * sizeof(T));
        } else {
            for (const T & item : items) {
                add(item);
            }
        }
        return *this;
    }
    template <typename T> Packer & add(const std::map<std::string, T> & values) {
        add(static_cast<uint64_t>(values.size()));
        for (const auto & [key, value] : values) {
            add(key);
            add(value);
        }
        return *this;
    }
    template <typename T> Packer & add(const std::optional<T> & value) {
        add(value.has_value());
        return value ? add(*value) : *this;
    }
    template <typename A, typename B> Packer & add(const std::pair<A, B> & pair) {
        return add(pair.first).add(pair.second);
    }

    const std::string & bytes() const { return bytes_; }

  private:
    std::string bytes_;
};

// Throws Error("invalid_message") where the bytes are not what a Packer of this type made.
class Unpacker {
  public:
    explicit Unpacker(std::string_view bytes) : bytes_(bytes) {}

    template <typename T> T get() {
        T value{};
        read(value);
        return value;
    }
    bool at_end() const { return bytes_.empty(); }

  private:
    [[noreturn]] static void refuse() { throw Error("invalid_message", "a message between processes is malformed"); }

    const char * take(size_t n) {
        if (n > bytes_.size()) {
            refuse();
        }
        const char * start = bytes_.data();
        bytes_.remove_prefix(n);
        return start;
    }

    // A count of things that take at least `least` bytes each.
    size_t count(size_t least) {
        const auto n = get<uint64_t>();
        if (n > bytes_.size() / least) {
            refuse();
        }
        return static_cast<size_t>(n);
    }

    template <typename T> void read(T & value) {
        if constexpr (has_fields<T>) {
            visit_fields(value, [this](const char *, auto & member, const auto &...) { this->read(member); });
        } else if constexpr (std::is_enum_v<T>) {
            const auto number = get<std::underlying_type_t<T>>();
            if (static_cast<size_t>(number) >= names(T{}).size()) {
                refuse();
            }
            value = static_cast<T>(number);
        } else if constexpr (std::is_same_v<T, bool>) {
            value = *take(1) != 0;
        } else {
            static_assert(std::is_arithmetic_v<T>);
            std::memcpy(&value, take(sizeof value), sizeof value);
        }
    }
    void read(std::string & text) {
        const size_t n = count(1);
        text.assign(take(n), n);
    }
    template <typename T> void read(std::vector<T> & items) {
        if constexpr (std::is_arithmetic_v<T>) {
            items.resize(count(sizeof(T)));
            if (!items.empty()) {
                std::memcpy(items.data(), take(items.size() * sizeof(T)), items.size() * sizeof(T));
            }
        } else {
            items.clear();
            for (size_t n = count(1); n > 0; --n) {
                items.emplace_back();
                read(items.back());
            }
        }
    }
    template <typename T> void read(std::map<std::string, T> & values) {
        values.clear();
        for (size_t n = count(1); n > 0; --n) {
            auto key = get<std::string>();
            read(values[std::move(key)]);
        }
    }
    template <typename T> void read(std::optional<T> & value) {
        value.reset();
        if (get<bool>()) {
            read(value.emplace());
        }
    }
    template <typename A, typename B> void read(std::pair<A, B> & pair) {
        read(pair.first);
        read(pair.second);
    }

    std::string_view bytes_;
};

}  // namespace pgl::wire
