// Prefix cache: tokens -> (where their KV state is, how long the shared prefix is), pins, least recently used. Pure.
#pragma once

#include "request.h"

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

namespace pgl {

// An index of what is where; it holds no KV state itself. A slot is one sequence of the KV cache and holds the tokens
// last evaluated in it; a host entry is a snapshot copied to host memory, whose blob the owner keeps by EntryId.
//
// What adapters change is in the state too: an entry serves only prompts that run with the adapters it was made with.
//
// Pins count, and only protect from being chosen (lru_slot, put_host's evictions): what the owner says outright
// (put_slot, clear_slot, drop_host) happens to a pinned entry too, and its pins go with it. An unknown EntryId, 0
// included, is ignored everywhere, so an owner may unpin what was already dropped. Not thread-safe: one owner.
class PrefixCache {
  public:
    using EntryId = uint64_t;   // never reused; 0 = none

    enum class Where : uint8_t { slot, host };

    struct Match {
        EntryId entry = 0;
        Where where = Where::slot;
        int32_t slot = -1;       // Where::slot only
        int32_t n_shared = 0;    // leading tokens shared with the prompt, >= 1
        int32_t n_tokens = 0;  // tokens of the whole entry (state that cannot be trimmed needs n_shared == n_tokens)
        bool pinned = false;
    };

    explicit PrefixCache(uint64_t host_limit_bytes) : host_limit_bytes_(host_limit_bytes) {}

    // Slots. Any index >= 0 exists; one never put is empty.
    // Replaces what the slot held: a new, unpinned entry.
    EntryId put_slot(int32_t slot, std::vector<Token> tokens, AdapterScales adapters = {});
    void extend_slot(int32_t slot, Token token);  // begins an entry, without adapters, if empty; amortised O(1); a use
    void trim_slot(int32_t slot, int32_t n_tokens);  // keeps the first n_tokens
    void clear_slot(int32_t slot);
    const std::vector<Token> & slot_tokens(int32_t slot) const;
    const AdapterScales & slot_adapters(int32_t slot) const;
    EntryId slot_entry(int32_t slot) const;  // 0 = empty
    int32_t lru_slot(const std::vector<int32_t> & candidates) const;  // unpinned only, empty first; -1 = none

    // Host snapshots. put_host drops unpinned entries that are a prefix of (or equal to) the new one, then evicts the
    // least recently used unpinned ones until it fits. Returns 0, changing nothing, if that cannot make room.
    EntryId put_host(std::vector<Token> tokens, uint64_t bytes, AdapterScales adapters = {});
    void drop_host(EntryId entry);  // by the owner's will: not reported by take_evicted
    std::vector<EntryId> take_evicted();  // host entries gone since the last call: the owner frees their blobs

    void pin(EntryId entry);
    void unpin(EntryId entry);
    void touch(EntryId entry);  // a use. The clock is a counter, no time

    // Every entry sharing at least one leading token with the prompt, longest first; ties: unpinned slot, pinned slot,
    // host; then the more recently used.
    std::vector<Match> matches(const std::vector<Token> & prompt, const AdapterScales & adapters = {}) const;

    uint64_t host_bytes() const { return host_bytes_; }
    uint64_t host_limit_bytes() const { return host_limit_bytes_; }
    size_t n_host() const { return host_.size(); }
    int32_t n_slot_tokens() const;  // summed over all slots
    bool check() const;  // the index agrees with itself; for the idle self-check

  private:
    struct Prefix {
        EntryId id = 0;
        std::vector<Token> tokens;
        AdapterScales adapters;
        uint64_t bytes = 0;  // host only
        uint64_t last_use = 0;
        int32_t n_pins = 0;
    };

    Prefix * find(EntryId entry);
    void evict(std::map<EntryId, Prefix>::iterator it);

    std::vector<Prefix> slots_;  // by slot index; id 0 = empty
    std::map<EntryId, Prefix> host_;
    std::vector<EntryId> evicted_;
    uint64_t host_limit_bytes_;
    uint64_t host_bytes_ = 0;
    uint64_t clock_ = 0;
    EntryId last_id_ = 0;
};

}  // namespace pgl
