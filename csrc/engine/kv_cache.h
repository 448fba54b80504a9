// The KV cache as a place to find prefixes: slots that still hold past conversations, and host copies of evicted ones.
#pragma once

#include "engine/prefix_cache.h"
#include "llama/model.h"

#include <optional>
#include <unordered_map>
#include <vector>

namespace pgl {

// One slot is one sequence of the model's context. A slot in use belongs to a running sequence; a free one keeps its
// content until another prompt needs the room, and then leaves a copy in host memory while the limit allows.
class KvCache {
  public:
    KvCache(Model & model, int32_t n_slots, uint64_t host_limit_bytes);

    struct Claim {
        int32_t slot;
        int32_t n_cached;   // leading prompt tokens that are already in the slot; at most all but the last
    };

    // A free slot, holding as much of the prompt as is known anywhere with these adapters, no more than `most_cached`
    // tokens of it. nullopt: every slot is in use.
    std::optional<Claim> claim(const std::vector<Token> & prompt, const AdapterScales & adapters,
                               int32_t most_cached = INT32_MAX);

    void append(int32_t slot, Token token);      // a decode put it there
    void rollback(int32_t slot);  // after an aborted decode or a padding token: back to what was appended
    void release(int32_t slot);  // the sequence ended; its content stays
    void discard(int32_t slot);  // the sequence failed; its content goes
    void forget_all();  // the context was rebuilt, empty

    const std::vector<Token> & tokens(int32_t slot) const { return index_.slot_tokens(slot); }
    int32_t length(int32_t slot) const { return static_cast<int32_t>(index_.slot_tokens(slot).size()); }
    std::vector<int32_t> used_slots() const;
    int32_t n_tokens() const { return index_.n_slot_tokens(); }
    uint64_t host_bytes() const { return index_.host_bytes(); }
    bool check() const { return index_.check(); }

  private:
    int32_t restore_prefix(int32_t slot, const PrefixCache::Match & match);
    void save(int32_t slot);
    void drop_evicted();

    Model & model_;
    PrefixCache index_;
    std::vector<bool> used_;
    std::unordered_map<PrefixCache::EntryId, std::vector<uint8_t>> snapshots_;
};

}  // namespace pgl
