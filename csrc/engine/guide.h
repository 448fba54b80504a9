// Guide: keeps one answer inside a grammar. Grammars: what a model's answers can be held to, through llguidance.
#pragma once

#include "llama/tokenizer.h"
#include "request.h"

#include <atomic>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

struct LlgMatcher;
struct LlgTokenizer;

namespace pgl {

class Grammars;

// One answer's way through its grammar, a token at a time: compute(), mask(), consume(). Of one thread at a time; only
// ready() is for any.
class Guide {
  public:
    // `first`: the first mask, where it is known; else compute() comes first.
    Guide(std::shared_ptr<const Grammars> grammars, LlgMatcher * matcher, std::vector<uint32_t> first = {});
    ~Guide();
    Guide(const Guide &) = delete;
    Guide & operator=(const Guide &) = delete;

    // Finds out which tokens may come next: microseconds mostly, for some grammars tens of milliseconds. Never throws:
    // mask() does, where this failed.
    void compute();

    // Whether the next mask is known.
    bool ready() const { return ready_.load(std::memory_order_acquire); }

    // Sets every logit [n_vocab] to -infinity whose token may not come next. The end-of-generation tokens may come
    // where the answer is complete. Throws Error("constraint_failed") when the grammar cannot be followed any further.
    void mask(float * logits) const;

    // Tells the token that was chosen; the next mask is not known any more. Throws as mask() does.
    void consume(Token token);

    // Whether the answer is complete and nothing may follow.
    bool complete() const;

  private:
    [[noreturn]] void fail() const;

    const std::shared_ptr<const Grammars> grammars_;
    LlgMatcher * matcher_;
    std::vector<uint32_t> allowed_;  // a bit per token
    bool failed_ = false;            // to compute it
    std::atomic<bool> ready_;
};

// The library, one model's vocabulary in its words, and the grammars compiled so far. Any thread.
class Grammars : public std::enable_shared_from_this<Grammars> {
  public:
    // `library`: the shared library of the Python package llguidance, 1.9 or newer. Opens it, hands it the vocabulary
    // (tenths of a second for 128,000 tokens) and tries it. Throws
    // Error("missing_library").
    static std::shared_ptr<const Grammars> open(const std::string & library,
                                                std::shared_ptr<const Tokenizer> tokenizer);
    ~Grammars();

    struct Compiled;
    // Compiles what was not compiled lately, on a stack of its own and for a second at most, and computes the first
    // mask, so that what cannot be followed is refused here. Throws Error: invalid_grammar; queue_full while too many
    // others are being compiled.
    std::shared_ptr<const Compiled> compiled(const Constraint & constraint) const;

    // A guide at the beginning of its answer. Throws as compiled() does.
    std::unique_ptr<Guide> guide(const Constraint & constraint) const;

    struct Api;
    const Api & api() const { return *api_; }
    int32_t n_vocab() const { return n_vocab_; }

  private:
    Grammars(const std::string & library, std::shared_ptr<const Tokenizer> tokenizer);
    LlgMatcher * new_matcher(const Constraint & constraint) const;
    void self_test() const;
    std::shared_ptr<const Compiled> compile(const Constraint & constraint) const;

    const std::unique_ptr<const Api> api_;
    const std::shared_ptr<const Tokenizer> tokenizer_;
    const int32_t n_vocab_;
    LlgTokenizer * vocabulary_ = nullptr;

    mutable std::atomic<int32_t> n_compiling_{0};  // also those that nobody waits for any more
    mutable std::mutex mutex_;
    mutable std::list<std::pair<std::string, std::shared_ptr<const Compiled>>> recent_;  // the latest used first
};

}  // namespace pgl
