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

struct LlgCancellationHandle;
struct LlgMatcher;
struct LlgTokenizer;

namespace pgl {

class Grammars;

// Which tokens may come next.
struct Mask {
    std::vector<uint32_t> allowed;  // a bit per token
    bool slow = false;              // it took long
};

// One answer's way through its grammar, a token at a time: mask(), chosen(), then compute(). Of one thread at a time;
// only ready() and stop() are for any.
class Guide {
  public:
    // `first`: the first mask. Without it compute() comes first.
    Guide(std::shared_ptr<const Grammars> grammars, LlgMatcher * matcher, const Mask & first = {});
    ~Guide();
    Guide(const Guide &) = delete;
    Guide & operator=(const Guide &) = delete;

    // Sets every logit [n_vocab] to -infinity whose token may not come next. The end-of-generation tokens may come
    // where the answer is complete. Throws Error("constraint_failed") when the grammar cannot be followed any further.
    void mask(float * logits) const;

    // Takes the token that was chosen. What follows a slow mask may be slow too, and is left to compute(): until then
    // it is not settled() whether the answer is complete. Throws as mask() does.
    void chosen(Token token);
    bool settled() const { return left_ < 0; }

    // Finds out what may come next: microseconds mostly, for some grammars a second. Never throws: mask() and
    // complete() do, where this failed.
    void compute();

    // Whether compute() has ended since the last token was chosen.
    bool ready() const { return ready_.load(std::memory_order_acquire); }

    // Tokens that come next whatever the model says, as far as the grammar leaves no choice. Of a guide that is ready.
    const std::vector<Token> & forced() const { return forced_; }

    // Whether nothing may follow. Throws as mask() does.
    bool complete() const;

    // A compute() that runs now or later ends at once, and fails.
    void stop();

  private:
    void consume(Token token);
    void check() const;
    [[noreturn]] void fail() const;

    const std::shared_ptr<const Grammars> grammars_;
    LlgMatcher * matcher_;
    LlgCancellationHandle * cancellation_;
    Mask mask_;
    std::vector<Token> forced_;
    Token left_ = -1;      // chosen, and left to compute()
    bool failed_ = false;  // the matcher knows why
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
    friend class Guide;
    LlgMatcher * new_matcher(const Constraint & constraint) const;
    bool compute_mask(LlgMatcher * matcher, Mask & mask) const;  // false: the matcher knows why
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
