#include "engine/kv_cache.h"

#include "engine/scheduler.h"

#include <algorithm>

namespace pgl {
namespace {

constexpr int32_t kMinSaved = 32;    // tokens: less is computed again sooner than copied back
constexpr int32_t kMinCopied = 16;
constexpr int32_t kCopyRatio = 32;   // a token is copied at least this much faster than computed

}  // namespace

KvCache::KvCache(Model & model, int32_t n_slots, uint64_t host_limit_bytes)
    : model_(model), index_(host_limit_bytes), used_(static_cast<size_t>(n_slots), false) {}

std::vector<int32_t> KvCache::used_slots() const {
    std::vector<int32_t> slots;
    for (size_t slot = 0; slot < used_.size(); ++slot) {
        if (used_[slot]) {
            slots.push_back(static_cast<int32_t>(slot));
        }
    }
    return slots;
}

std::optional<KvCache::Claim> KvCache::claim(const std::vector<Token> & prompt, const AdapterScales & adapters,
                                             int32_t most_cached) {
    std::vector<int32_t> free, empty;
    for (size_t slot = 0; slot < used_.size(); ++slot) {
        if (!used_[slot]) {
            free.push_back(static_cast<int32_t>(slot));
            if (index_.slot_entry(free.back()) == 0) {
                empty.push_back(free.back());
            }
        }
    }
    if (free.empty()) {
        return std::nullopt;
    }
    // The last prompt token is always computed: its logits are the answer's first.
    const auto limit = std::min(static_cast<int32_t>(prompt.size()) - 1, most_cached);
    PrefixCache::Match match;
    for (PrefixCache::Match candidate : index_.matches(prompt, adapters)) {
        candidate.n_shared = std::min(candidate.n_shared, limit);
        if (candidate.n_shared > 0 && (model_.can_trim() || candidate.n_shared == candidate.n_tokens)) {
            match = candidate;
            break;
        }
    }

    int32_t slot = -1, n_cached = 0;
    const bool in_free_slot = match.entry != 0 && match.slot >= 0 && !used_[static_cast<size_t>(match.slot)];
    if (in_free_slot && (match.n_tokens - match.n_shared <= match.n_shared || free.size() == 1)) {
        // The same conversation goes on (or there is no other room): take its slot as it stands.
        slot = match.slot;
        if (match.n_tokens - match.n_shared > match.n_shared) {
            save(slot);
        }
        if (model_.trim(slot, match.n_shared)) {
            index_.trim_slot(slot, match.n_shared);
            n_cached = match.n_shared;
        } else {
            index_.clear_slot(slot);
        }
    } else {
        slot = empty.empty() ? -1 : Scheduler::choose_slot(empty, used_slots());
        if (slot < 0) {
            std::vector<int32_t> others;  // rather not the slot that is about to be copied from
            std::copy_if(free.begin(), free.end(), std::back_inserter(others),
                         [&](int32_t other) { return other != match.slot; });
            slot = index_.lru_slot(others.empty() ? free : others);
        }
        index_.pin(match.entry);
        save(slot);
        model_.trim(slot, 0);
        index_.clear_slot(slot);
        if (match.entry != 0 && match.n_shared >= kMinCopied && match.n_shared * kCopyRatio >= match.n_tokens) {
            n_cached = restore_prefix(slot, match);
        }
        index_.unpin(match.entry);
    }
    if (index_.slot_entry(slot) == 0) {
        index_.put_slot(slot, {prompt.begin(), prompt.begin() + n_cached}, adapters);
    }
    used_[static_cast<size_t>(slot)] = true;
    index_.pin(index_.slot_entry(slot));
    return Claim{slot, n_cached};
}

// Copies a known prefix into an empty slot. Returns the tokens it now holds.
int32_t KvCache::restore_prefix(int32_t slot, const PrefixCache::Match & match) {
    bool restored = false;
    if (match.where == PrefixCache::Where::host) {
        restored = model_.restore(slot, snapshots_.at(match.entry));
        index_.touch(match.entry);
    } else {
        restored = model_.restore(slot, model_.snapshot(match.slot));
    }
    if (!restored || !model_.trim(slot, match.n_shared)) {
        return 0;
    }
    return match.n_shared;
}

void KvCache::save(int32_t slot) {
    const std::vector<Token> & tokens = index_.slot_tokens(slot);
    const auto n_tokens = static_cast<int32_t>(tokens.size());
    if (n_tokens < kMinSaved || index_.host_limit_bytes() == 0) {
        return;
    }
    const std::vector<PrefixCache::Match> known = index_.matches(tokens, index_.slot_adapters(slot));
    const bool elsewhere = std::any_of(known.begin(), known.end(), [&](const PrefixCache::Match & match) {
        return match.n_shared == n_tokens && match.slot != slot;
    });
    if (elsewhere) {
        return;
    }
    std::vector<uint8_t> data = model_.snapshot(slot);
    const PrefixCache::EntryId entry = index_.put_host(tokens, data.size(), index_.slot_adapters(slot));
    if (entry != 0) {
        snapshots_[entry] = std::move(data);
    }
    drop_evicted();
}

void KvCache::drop_evicted() {
    for (const PrefixCache::EntryId entry : index_.take_evicted()) {
        snapshots_.erase(entry);
    }
}

void KvCache::append(int32_t slot, Token token) {
    index_.extend_slot(slot, token);
}

void KvCache::rollback(int32_t slot) {
    if (!model_.trim(slot, length(slot))) {
        index_.trim_slot(slot, 0);
    }
}

void KvCache::release(int32_t slot) {
    used_[static_cast<size_t>(slot)] = false;
    index_.unpin(index_.slot_entry(slot));
    if (length(slot) == 0) {
        index_.clear_slot(slot);
    }
}

void KvCache::discard(int32_t slot) {
    used_[static_cast<size_t>(slot)] = false;
    index_.clear_slot(slot);
    model_.trim(slot, 0);
}

void KvCache::forget_all() {
    for (size_t slot = 0; slot < used_.size(); ++slot) {
        index_.clear_slot(static_cast<int32_t>(slot));
        used_[slot] = false;
    }
}

}  // namespace pgl
