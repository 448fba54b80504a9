// PrefixCache against a naive model that keeps every rule as one obvious sentence, over random operations.
#include "check.h"
#include "engine/prefix_cache.h"

#include <algorithm>
#include <random>
#include <set>

using namespace pgl;
using Tokens = std::vector<Token>;
using Where = PrefixCache::Where;
using EntryId = PrefixCache::EntryId;

namespace {

struct Model {
    struct Entry {
        EntryId id = 0;
        int slot = -1;   // -1 = host
        Tokens tokens;
        uint64_t bytes = 0;
        int n_pins = 0;
    };

    std::vector<Entry> entries;   // least recently used first
    std::set<EntryId> evicted;
    uint64_t limit = 0;

    Entry * find(EntryId id) {
        for (Entry & e : entries) {
            if (e.id == id)
                return &e;
        }
        return nullptr;
    }
    Entry * in_slot(int slot) {
        for (Entry & e : entries) {
            if (e.slot == slot && slot >= 0)
                return &e;
        }
        return nullptr;
    }
    void remove(EntryId id) {
        entries.erase(std::remove_if(entries.begin(), entries.end(), [&](const Entry & e) { return e.id == id; }),
                      entries.end());
    }
    void use(EntryId id) {
        if (Entry * e = find(id)) {
            const Entry copy = *e;
            remove(id);
            entries.push_back(copy);
        }
    }
    uint64_t host_bytes() const {
        uint64_t n = 0;
        for (const Entry & e : entries)
            n += e.bytes;
        return n;
    }
    static int shared(const Tokens & a, const Tokens & b) {
        int n = 0;
        while (n < static_cast<int>(std::min(a.size(), b.size())) && a[n] == b[n])
            ++n;
        return n;
    }
    // What put_host must evict, or nullptr-like failure.
    bool plan(const Tokens & tokens, uint64_t bytes, std::set<EntryId> & gone) const {
        if (tokens.empty())
            return false;
        uint64_t held = 0;
        for (const Entry & e : entries) {
            if (e.slot >= 0)
                continue;
            const bool prefix = shared(e.tokens, tokens) == static_cast<int>(e.tokens.size());
            if (prefix && e.n_pins == 0)
                gone.insert(e.id);
            else
                held += e.bytes;
        }
        for (const Entry & e : entries) {   // oldest first
            if (held + bytes <= limit)
                break;
            if (e.slot >= 0 || e.n_pins > 0 || gone.count(e.id) > 0)
                continue;
            gone.insert(e.id);
            held -= e.bytes;
        }
        return held + bytes <= limit;
    }
};

Tokens random_tokens(std::mt19937 & rng) {
    Tokens tokens(rng() % 7);
    for (Token & t : tokens)
        t = static_cast<Token>(rng() % 2);   // two tokens only: shared prefixes abound
    return tokens;
}

void same(const PrefixCache & cache, Model & model, int n_slots, std::mt19937 & rng) {
    CHECK(cache.check());
    CHECK_EQ(cache.host_bytes(), model.host_bytes());
    CHECK(cache.host_bytes() <= model.limit);
    int n_slot_tokens = 0;
    for (int slot = 0; slot < n_slots; ++slot) {
        const Model::Entry * e = model.in_slot(slot);
        CHECK_EQ(cache.slot_entry(slot), e == nullptr ? 0 : e->id);
        CHECK_EQ(cache.slot_tokens(slot), e == nullptr ? Tokens{} : e->tokens);
        n_slot_tokens += e == nullptr ? 0 : static_cast<int>(e->tokens.size());
    }
    CHECK_EQ(cache.n_slot_tokens(), n_slot_tokens);

    const Tokens prompt = random_tokens(rng);
    std::vector<std::vector<int64_t>> want, got;   // sort keys first: -shared, tier, -recency; then the rest
    for (size_t i = 0; i < model.entries.size(); ++i) {
        const Model::Entry & e = model.entries[i];
        const int n = Model::shared(e.tokens, prompt);
        const int tier = e.slot < 0 ? 2 : e.n_pins > 0 ? 1 : 0;
        if (n > 0) {
            want.push_back({-n, tier, -static_cast<int64_t>(i), static_cast<int64_t>(e.id), e.slot, n,
                            static_cast<int64_t>(e.tokens.size()), e.n_pins > 0});
        }
    }
    std::sort(want.begin(), want.end());
    for (std::vector<int64_t> & row : want)
        row.erase(row.begin(), row.begin() + 3);
    for (const PrefixCache::Match & m : cache.matches(prompt)) {
        CHECK_EQ(m.where, m.slot < 0 ? Where::host : Where::slot);
        got.push_back({static_cast<int64_t>(m.entry), m.slot, m.n_shared, m.n_tokens, m.pinned});
    }
    CHECK_EQ(got, want);

    std::vector<int32_t> candidates;
    for (int slot = 0; slot < n_slots; ++slot) {
        if (rng() % 2 == 0)
            candidates.push_back(slot);
    }
    std::shuffle(candidates.begin(), candidates.end(), rng);
    int32_t victim = -1;
    for (const int32_t slot : candidates) {   // the first empty one, if there is one
        const Model::Entry * e = model.in_slot(slot);
        if (victim < 0 && (e == nullptr || (e->tokens.empty() && e->n_pins == 0)))
            victim = slot;
    }
    for (const Model::Entry & e : model.entries) {   // else the oldest that is not pinned
        const bool asked = std::count(candidates.begin(), candidates.end(), e.slot) > 0;
        if (victim < 0 && e.n_pins == 0 && asked)
            victim = e.slot;
    }
    CHECK_EQ(cache.lru_slot(candidates), victim);
}

void random_operations() {
    size_t n_refused = 0, n_stored = 0, n_evicted = 0;
    for (uint32_t seed = 0; seed < 400; ++seed) {
        std::mt19937 rng(seed);
        Model model;
        model.limit = rng() % 200;
        PrefixCache cache(model.limit);
        const int n_slots = 1 + static_cast<int>(rng() % 4);
        std::vector<EntryId> ids = {0, 12345};   // every id ever seen, dead ones too
        for (int step = 0; step < 150; ++step) {
            check::context = "seed " + std::to_string(seed) + " step " + std::to_string(step);
            const int slot = static_cast<int>(rng() % static_cast<uint32_t>(n_slots));
            const EntryId id = ids[rng() % ids.size()];
            Model::Entry * e = model.in_slot(slot);
            switch (rng() % 11) {
            case 0: {
                const Tokens tokens = random_tokens(rng);
                const EntryId fresh = cache.put_slot(slot, tokens);
                CHECK(fresh != 0 && std::count(ids.begin(), ids.end(), fresh) == 0);
                if (e != nullptr)
                    model.remove(e->id);
                model.entries.push_back({fresh, slot, tokens, 0, 0});
                ids.push_back(fresh);
                break;
            }
            case 1:
            case 2: {
                const auto token = static_cast<Token>(rng() % 2);
                cache.extend_slot(slot, token);
                if (e == nullptr) {
                    model.entries.push_back({cache.slot_entry(slot), slot, {token}, 0, 0});
                    ids.push_back(cache.slot_entry(slot));
                } else {
                    e->tokens.push_back(token);
                    model.use(e->id);
                }
                break;
            }
            case 3: {
                const int n = static_cast<int>(rng() % 9) - 1;
                cache.trim_slot(slot, n);
                if (e != nullptr)
                    e->tokens.resize(std::min(e->tokens.size(), static_cast<size_t>(std::max(n, 0))));
                break;
            }
            case 4:
                cache.clear_slot(slot);
                if (e != nullptr)
                    model.remove(e->id);
                break;
            case 5:
            case 6: {
                const Tokens tokens = random_tokens(rng);
                const uint64_t bytes = rng() % 90;
                std::set<EntryId> gone;
                const bool fits = model.plan(tokens, bytes, gone);
                const EntryId fresh = cache.put_host(tokens, bytes);
                CHECK_EQ(fresh != 0, fits);
                if (fits) {
                    for (const EntryId g : gone)
                        model.remove(g);
                    model.evicted.insert(gone.begin(), gone.end());
                    model.entries.push_back({fresh, -1, tokens, bytes, 0});
                    ids.push_back(fresh);
                }
                ++(fits ? n_stored : n_refused);
                n_evicted += fits ? gone.size() : 0;
                break;
            }
            case 7:
                cache.drop_host(id);
                if (model.find(id) != nullptr && model.find(id)->slot < 0)
                    model.remove(id);
                break;
            case 8:
                cache.pin(id);
                if (model.find(id) != nullptr)
                    ++model.find(id)->n_pins;
                break;
            case 9:
                cache.unpin(id);
                if (model.find(id) != nullptr && model.find(id)->n_pins > 0)
                    --model.find(id)->n_pins;
                break;
            default:
                cache.touch(id);
                model.use(id);
                break;
            }
            if (rng() % 3 == 0) {
                const std::vector<EntryId> evicted = cache.take_evicted();
                const std::set<EntryId> unique(evicted.begin(), evicted.end());
                CHECK(unique == model.evicted && unique.size() == evicted.size());
                model.evicted.clear();
            }
            same(cache, model, n_slots, rng);
        }
    }
    check::context = "the generator reaches every case";
    CHECK(n_refused > 500 && n_stored > 500 && n_evicted > 500);
}

void decided_cases() {
    check::context = "decided cases";
    PrefixCache cache(100);
    CHECK(cache.matches({1, 2, 3}).empty());
    CHECK_EQ(cache.lru_slot({}), -1);
    CHECK_EQ(cache.lru_slot({7}), 7);   // never used = empty
    const EntryId a = cache.put_slot(0, {1, 2, 3});
    cache.put_slot(1, {1, 2, 9});
    cache.pin(a);
    CHECK_EQ(cache.lru_slot({0, 1}), 1);
    CHECK_EQ(cache.matches({1, 2, 3, 4}).front().slot, 0);        // longest, though pinned
    CHECK_EQ(cache.matches({1, 2}).front().slot, 1);              // a tie: the unpinned one
    cache.pin(a);
    cache.unpin(a);
    cache.pin(cache.slot_entry(1));
    CHECK_EQ(cache.lru_slot({0, 1}), -1);                         // pins count
    const EntryId h = cache.put_host({1, 2}, 60);
    CHECK_EQ(cache.matches({1, 2}).back().entry, h);              // a tie: host last
    CHECK_EQ(cache.put_host({5}, 101), 0u);                       // never fits
    CHECK_EQ(cache.host_bytes(), 60u);                            // and changed nothing
    cache.pin(h);
    CHECK_EQ(cache.put_host({1, 2, 3}, 60), 0u);                  // a pinned prefix is not dropped
    CHECK(cache.take_evicted().empty());
    cache.unpin(h);
    CHECK(cache.put_host({1, 2, 3}, 60) != 0);
    CHECK_EQ(cache.take_evicted(), std::vector<EntryId>{h});
    CHECK(cache.take_evicted().empty());
    cache.put_slot(2, {1, 2, 3, 4}, {0.5f});   // what another adapter made of the same tokens
    CHECK(cache.matches({1, 2, 3, 4}).front().slot != 2);
    CHECK_EQ(cache.matches({1, 2, 3, 4}, {0.5f}).size(), 1u);
    CHECK_EQ(cache.matches({1, 2, 3, 4}, {0.5f}).front().slot, 2);
    CHECK(cache.matches({1, 2, 3, 4}, {0.25f}).empty());
    cache.extend_slot(2, 5);
    CHECK(cache.slot_adapters(2) == AdapterScales({0.5f}));
    const EntryId plain = cache.matches({1, 2, 3}).back().entry;
    CHECK(cache.put_host({1, 2, 3, 4}, 40, {0.5f}) != 0);   // and is no reason to drop the other's prefix
    CHECK(cache.take_evicted().empty());
    CHECK_EQ(cache.matches({1, 2, 3}).back().entry, plain);
    PrefixCache off(0);
    CHECK_EQ(off.put_host({1}, 1), 0u);
    CHECK(off.check());
}

}  // namespace

int main() {
    decided_cases();
    random_operations();
    return check::result("prefix_cache");
}
