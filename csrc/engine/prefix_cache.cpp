// Prefix cache: plain vectors compared token by token; a few hundred entries cost less than one decode.
#include "engine/prefix_cache.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace pgl {

namespace {

int32_t n_shared_tokens(const std::vector<Token> & a, const std::vector<Token> & b) {
    return static_cast<int32_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin());
}

bool is_prefix(const std::vector<Token> & a, const std::vector<Token> & of) {
    return a.size() <= of.size() && std::equal(a.begin(), a.end(), of.begin());
}

}  // namespace

PrefixCache::Prefix * PrefixCache::find(EntryId entry) {
    if (entry == 0) {
        return nullptr;
    }
    const auto it = host_.find(entry);
    if (it != host_.end()) {
        return &it->second;
    }
    for (Prefix & slot : slots_) {
        if (slot.id == entry) {
            return &slot;
        }
    }
    return nullptr;
}

PrefixCache::EntryId PrefixCache::put_slot(int32_t slot, std::vector<Token> tokens, AdapterScales adapters) {
    const auto index = static_cast<size_t>(slot);
    if (index >= slots_.size()) {
        slots_.resize(index + 1);
    }
    Prefix & entry = slots_[index];
    entry = {};
    entry.id = ++last_id_;
    entry.tokens = std::move(tokens);
    entry.adapters = std::move(adapters);
    entry.last_use = ++clock_;
    return entry.id;
}

void PrefixCache::extend_slot(int32_t slot, Token token) {
    if (slot_entry(slot) == 0) {
        put_slot(slot, {});
    }
    Prefix & entry = slots_[static_cast<size_t>(slot)];
    entry.tokens.push_back(token);
    entry.last_use = ++clock_;
}

void PrefixCache::trim_slot(int32_t slot, int32_t n_tokens) {
    const auto index = static_cast<size_t>(slot), n = static_cast<size_t>(std::max(n_tokens, 0));
    if (index < slots_.size() && n < slots_[index].tokens.size()) {
        slots_[index].tokens.resize(n);
    }
}

void PrefixCache::clear_slot(int32_t slot) {
    const auto index = static_cast<size_t>(slot);
    if (index < slots_.size()) {
        slots_[index] = {};
    }
}

const std::vector<Token> & PrefixCache::slot_tokens(int32_t slot) const {
    static const std::vector<Token> none;
    const auto index = static_cast<size_t>(slot);
    return index < slots_.size() ? slots_[index].tokens : none;
}

const AdapterScales & PrefixCache::slot_adapters(int32_t slot) const {
    static const AdapterScales none;
    const auto index = static_cast<size_t>(slot);
    return index < slots_.size() ? slots_[index].adapters : none;
}

PrefixCache::EntryId PrefixCache::slot_entry(int32_t slot) const {
    const auto index = static_cast<size_t>(slot);
    return index < slots_.size() ? slots_[index].id : 0;
}

int32_t PrefixCache::lru_slot(const std::vector<int32_t> & candidates) const {
    int32_t best = -1;
    uint64_t best_use = UINT64_MAX;
    for (const int32_t slot : candidates) {
        const auto index = static_cast<size_t>(slot);
        const bool known = index < slots_.size();
        if (known && slots_[index].n_pins > 0) {
            continue;
        }
        // Nothing is lost by taking a slot without tokens.
        const uint64_t use = known && !slots_[index].tokens.empty() ? slots_[index].last_use : 0;
        if (use < best_use) {
            best = slot;
            best_use = use;
        }
    }
    return best;
}

PrefixCache::EntryId PrefixCache::put_host(std::vector<Token> tokens, uint64_t bytes, AdapterScales adapters) {
    if (tokens.empty()) {
        return 0;
    }
    uint64_t pinned_bytes = 0;
    for (const auto & item : host_) {
        pinned_bytes += item.second.n_pins > 0 ? item.second.bytes : 0;
    }
    if (pinned_bytes > host_limit_bytes_ || bytes > host_limit_bytes_ - pinned_bytes) {
        return 0;
    }
    for (auto it = host_.begin(); it != host_.end();) {
        const auto next = std::next(it);
        if (it->second.n_pins == 0 && it->second.adapters == adapters && is_prefix(it->second.tokens, tokens)) {
            evict(it);
        }
        it = next;
    }
    while (bytes > host_limit_bytes_ - host_bytes_) {
        auto victim = host_.end();
        for (auto it = host_.begin(); it != host_.end(); ++it) {
            if (it->second.n_pins == 0 && (victim == host_.end() || it->second.last_use < victim->second.last_use)) {
                victim = it;
            }
        }
        evict(victim);   // exists: the pinned ones alone leave room
    }
    Prefix entry;
    entry.id = ++last_id_;
    entry.tokens = std::move(tokens);
    entry.adapters = std::move(adapters);
    entry.bytes = bytes;
    entry.last_use = ++clock_;
    host_bytes_ += bytes;
    return host_.emplace(entry.id, std::move(entry)).first->first;
}

void PrefixCache::evict(std::map<EntryId, Prefix>::iterator it) {
    evicted_.push_back(it->first);
    host_bytes_ -= it->second.bytes;
    host_.erase(it);
}

void PrefixCache::drop_host(EntryId entry) {
    const auto it = host_.find(entry);
    if (it != host_.end()) {
        host_bytes_ -= it->second.bytes;
        host_.erase(it);
    }
}

std::vector<PrefixCache::EntryId> PrefixCache::take_evicted() {
    return std::exchange(evicted_, {});
}

void PrefixCache::pin(EntryId entry) {
    if (Prefix * e = find(entry)) {
        ++e->n_pins;
    }
}

void PrefixCache::unpin(EntryId entry) {
    Prefix * e = find(entry);
    if (e != nullptr && e->n_pins > 0) {
        --e->n_pins;
    }
}

void PrefixCache::touch(EntryId entry) {
    if (Prefix * e = find(entry)) {
        e->last_use = ++clock_;
    }
}

std::vector<PrefixCache::Match> PrefixCache::matches(const std::vector<Token> & prompt,
                                                     const AdapterScales & adapters) const {
    struct Found {
        Match match;
        uint64_t last_use;
    };
    std::vector<Found> found;
    const auto add = [&](const Prefix & entry, Where where, int32_t slot) {
        const int32_t n = entry.adapters == adapters ? n_shared_tokens(entry.tokens, prompt) : 0;
        if (n > 0) {
            const auto n_tokens = static_cast<int32_t>(entry.tokens.size());
            found.push_back({{entry.id, where, slot, n, n_tokens, entry.n_pins > 0}, entry.last_use});
        }
    };
    for (size_t i = 0; i < slots_.size(); ++i) {
        add(slots_[i], Where::slot, static_cast<int32_t>(i));
    }
    for (const auto & item : host_) {
        add(item.second, Where::host, -1);
    }
    const auto rank = [](const Found & f) {
        const int tier = f.match.where == Where::host ? 2 : f.match.pinned ? 1 : 0;
        return std::make_tuple(-f.match.n_shared, tier, UINT64_MAX - f.last_use);
    };
    std::sort(found.begin(), found.end(), [&](const Found & a, const Found & b) { return rank(a) < rank(b); });
    std::vector<Match> result;
    result.reserve(found.size());
    for (const Found & f : found) {
        result.push_back(f.match);
    }
    return result;
}

int32_t PrefixCache::n_slot_tokens() const {
    size_t n = 0;
    for (const Prefix & slot : slots_) {
        n += slot.tokens.size();
    }
    return static_cast<int32_t>(n);
}

bool PrefixCache::check() const {
    std::vector<EntryId> ids;
    std::vector<uint64_t> uses;
    uint64_t bytes = 0;
    const auto sound = [&](const Prefix & e) {
        ids.push_back(e.id);
        uses.push_back(e.last_use);
        return e.id != 0 && e.id <= last_id_ && e.last_use != 0 && e.last_use <= clock_ && e.n_pins >= 0;
    };
    for (const Prefix & slot : slots_) {
        if (slot.id == 0 ? !slot.tokens.empty() || slot.n_pins != 0 || slot.last_use != 0 : !sound(slot)) {
            return false;
        }
    }
    for (const auto & [id, entry] : host_) {
        if (!sound(entry) || entry.id != id || entry.tokens.empty()) {
            return false;
        }
        bytes += entry.bytes;
    }
    const auto distinct = [](auto & values) {
        std::sort(values.begin(), values.end());
        return std::adjacent_find(values.begin(), values.end()) == values.end();
    };
    return distinct(ids) && distinct(uses) && bytes == host_bytes_ && bytes <= host_limit_bytes_;
}

}  // namespace pgl
