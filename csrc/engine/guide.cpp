#include "engine/guide.h"

#include "platform/library.h"
#include "platform/machine.h"

#include <algorithm>
#include <array>
#include <bitset>
#include <chrono>
#include <limits>
#include <type_traits>

namespace pgl {

// llguidance's C interface as of version 1.9 (its parser/llguidance.h): what of it is used here.
struct Grammars::Api {
    // Sizes in bytes, units of work as the library counts them; 0 = its own default.
    struct Limits {
        size_t max_items_in_row;
        uint64_t initial_lexer_fuel;
        uint64_t step_lexer_fuel;
        size_t step_max_items;
        size_t max_lexer_states;
        size_t max_grammar_size;
        bool precompute_large_lexemes;
        bool verbose_errors;
    };
    struct Init {
        const LlgTokenizer * tokenizer;
        uint32_t log_buffer_level;
        uint32_t log_stderr_level;
        bool ff_tokens_ok;
        bool backtrack_ok;
        Limits limits;
        char later_versions[512];  // the struct has no size field, and may grow
    };
    struct Vocabulary {
        size_t struct_size;
        uint32_t vocab_size;
        uint32_t tok_eos;
        const uint32_t * token_lens;
        const uint8_t * token_bytes;
        const char * tokenizer_json;
        bool tokenize_assumes_string;
        size_t (*tokenize)(const void * user_data, const uint8_t * bytes, size_t n_bytes, uint32_t * out, size_t n_out);
        bool use_approximate_greedy_tokenize_fn;
        const void * tokenize_user_data;
        const char * const * slices;
        const uint32_t * tok_eos_extra;
        uint32_t tok_eos_extra_count;
    };

    LlgTokenizer * (*new_tokenizer)(const Vocabulary *, char * error, size_t error_bytes);
    void (*free_tokenizer)(LlgTokenizer *);
    void (*init_defaults)(Init *, const LlgTokenizer *);
    LlgMatcher * (*new_matcher)(const Init *, const char * kind, const char * text);
    LlgMatcher * (*clone_matcher)(const LlgMatcher *);
    void (*free_matcher)(LlgMatcher *);
    const char * (*error)(LlgMatcher *);
    int32_t (*compute_mask)(LlgMatcher *, uint32_t * mask, size_t mask_bytes);
    size_t (*mask_bytes)(const LlgMatcher *);
    int32_t (*forced_tokens)(LlgMatcher *, uint32_t * tokens, size_t n_tokens);
    int32_t (*consume)(LlgMatcher *, uint32_t token);
    bool (*is_stopped)(const LlgMatcher *);
    LlgCancellationHandle * (*cancellation)(LlgMatcher *);
    void (*cancel)(const LlgCancellationHandle *);
    void (*free_cancellation)(LlgCancellationHandle *);

    explicit Api(const std::string & library) {
        const auto find = [&](auto & function, const char * name) {
            function = reinterpret_cast<std::decay_t<decltype(function)>>(platform::symbol_of(library, name));
        };
        find(new_tokenizer, "llg_new_tokenizer_v2");
        find(free_tokenizer, "llg_free_tokenizer");
        find(init_defaults, "llg_constraint_init_set_defaults");
        find(new_matcher, "llg_new_matcher");
        find(clone_matcher, "llg_clone_matcher");
        find(free_matcher, "llg_free_matcher");
        find(error, "llg_matcher_get_error");
        find(compute_mask, "llg_matcher_compute_mask_into");
        find(mask_bytes, "llg_matcher_get_mask_byte_size");
        find(forced_tokens, "llg_matcher_compute_ff_tokens");
        find(consume, "llg_matcher_consume_token");
        find(is_stopped, "llg_matcher_is_stopped");
        find(cancellation, "llg_matcher_get_cancellation_handle");
        find(cancel, "llg_cancel");
        find(free_cancellation, "llg_free_cancellation_handle");
    }
};

// A compiled grammar at its beginning: answers start from copies.
struct Grammars::Compiled {
    const Api & api;  // of the Grammars that keep it
    LlgMatcher * matcher;
    Mask first;

    Compiled(const Api & api_, LlgMatcher * matcher_) : api(api_), matcher(matcher_) {}
    Compiled(const Compiled &) = delete;
    Compiled & operator=(const Compiled &) = delete;
    ~Compiled() { api.free_matcher(matcher); }
};

namespace {

constexpr size_t kCompileStack = size_t{64} << 20;  // the library recurses over what is nested
constexpr auto kCompileTime = std::chrono::seconds(1);
constexpr size_t kRecent = 32;
constexpr int32_t kMaxCompiling = 8;
constexpr size_t kErrorBytes = 1024;
constexpr auto kSlow = std::chrono::milliseconds(1);
// What bounds the memory of one answer. States of the lexer take a kilobyte or so each, and stay; real schemas need
// hundreds. Items of the parser take eight bytes each, in a row for every byte of the answer; real schemas need tens,
// but an object of 450 optional properties takes 1,800.
constexpr size_t kMaxLexerStates = 50'000;
constexpr size_t kMaxItemsInRow = 2000;
// A token that is no text begins with this byte in the library's vocabulary, so that no text can spell it.
constexpr char kControl = '\xFF';

// Of a mask with one bit for each token.
size_t mask_words(int32_t n_vocab) {
    return (static_cast<size_t>(n_vocab) + 31) / 32;
}

bool allows_one(const Mask & mask) {
    size_t n = 0;
    for (const uint32_t word : mask.allowed) {
        n += std::bitset<32>(word).count();
    }
    return n == 1;
}

size_t tokenize(const void * user_data, const uint8_t * bytes, size_t n_bytes, uint32_t * out, size_t n_out) {
    try {
        const auto & tokenizer = *static_cast<const Tokenizer *>(user_data);
        const std::string text(reinterpret_cast<const char *>(bytes), n_bytes);
        const std::vector<Token> tokens = tokenizer.tokenize({{text, false}}, false);
        std::string spelled;
        for (const Token token : tokens) {
            spelled += tokenizer.bytes(token);
        }
        if (spelled != text) {
            return 0;  // some vocabularies lack a byte, or cannot do without a blank in front
        }
        for (size_t i = 0; i < std::min(tokens.size(), n_out); ++i) {
            out[i] = static_cast<uint32_t>(tokens[i]);
        }
        return tokens.size();
    } catch (...) {  // nothing may be thrown through the library; without tokens it goes by its own greedy ones
        return 0;
    }
}

// The library's own words, without the dump of its state that follows them.
std::string words_of(const char * error) {
    std::string text = error == nullptr ? "it cannot be followed" : error;
    text.resize(std::min({text.size(), text.find("\n<state>"), text.find("\n<non-verbose/>"), kErrorBytes}));
    while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) {
        text.pop_back();
    }
    return text == "NoExtensionBias" ? "no answer that this vocabulary can spell fits it" : text;
}

[[noreturn]] void refuse(const std::string & why) {
    throw Error("invalid_grammar", why);
}

}  // namespace

Guide::Guide(std::shared_ptr<const Grammars> grammars, LlgMatcher * matcher, const Mask & first)
    : grammars_(std::move(grammars)), matcher_(matcher), cancellation_(grammars_->api().cancellation(matcher)),
      mask_(first), ready_(!first.allowed.empty()) {}

Guide::~Guide() {
    grammars_->api().free_cancellation(cancellation_);
    grammars_->api().free_matcher(matcher_);
}

void Guide::fail() const {
    throw Error("constraint_failed",
                "the answer cannot be kept in its grammar: " + words_of(grammars_->api().error(matcher_)));
}

void Guide::check() const {
    if (failed_) {
        fail();
    }
}

void Guide::consume(Token token) {
    failed_ = grammars_->api().consume(matcher_, static_cast<uint32_t>(token)) != 0;
}

void Guide::chosen(Token token) {
    ready_.store(false, std::memory_order_relaxed);
    if (mask_.slow) {
        left_ = token;
        return;
    }
    consume(token);
    check();
}

void Guide::compute() {
    if (left_ >= 0) {
        consume(std::exchange(left_, -1));
    }
    forced_.clear();
    if (!failed_ && !grammars_->api().is_stopped(matcher_)) {
        failed_ = !grammars_->compute_mask(matcher_, mask_);
        if (!failed_ && allows_one(mask_)) {
            std::array<uint32_t, kMaxRows> tokens;
            const int32_t n = grammars_->api().forced_tokens(matcher_, tokens.data(), tokens.size());
            forced_.assign(tokens.begin(), tokens.begin() + std::max(0, n));
        }
    }
    ready_.store(true, std::memory_order_release);
}

bool Guide::complete() const {
    check();
    return grammars_->api().is_stopped(matcher_);
}

void Guide::stop() {
    grammars_->api().cancel(cancellation_);
}

void Guide::mask(float * logits) const {
    check();
    constexpr float kNever = -std::numeric_limits<float>::infinity();
    const int32_t n_vocab = grammars_->n_vocab();
    bool any = false;
    for (size_t word = 0; word < mask_.allowed.size(); ++word) {
        const auto first = static_cast<int32_t>(word * 32);
        const int32_t n = std::min(32, n_vocab - first);
        const uint32_t bits = mask_.allowed[word];
        if (bits == 0) {
            std::fill(logits + first, logits + first + n, kNever);
            continue;
        }
        any = true;
        for (int32_t i = 0; i < n; ++i) {
            if ((bits >> i & 1) == 0) {
                logits[first + i] = kNever;
            }
        }
    }
    if (!any) {
        fail();
    }
}

std::shared_ptr<const Grammars> Grammars::open(const std::string & library,
                                               std::shared_ptr<const Tokenizer> tokenizer) {
    const std::shared_ptr<Grammars> grammars(new Grammars(library, std::move(tokenizer)));
    grammars->self_test();
    return grammars;
}

Grammars::Grammars(const std::string & library, std::shared_ptr<const Tokenizer> tokenizer)
    : api_(std::make_unique<const Api>(library)), tokenizer_(std::move(tokenizer)), n_vocab_(tokenizer_->n_vocab()) {
    std::vector<uint32_t> lengths, ends;
    std::string bytes;
    for (Token token = 0; token < n_vocab_; ++token) {
        std::string piece = tokenizer_->bytes(token);
        if (piece.empty() || piece[0] == kControl || tokenizer_->is_control(token)) {
            piece = kControl + tokenizer_->literal(token);
        }
        lengths.push_back(static_cast<uint32_t>(piece.size()));
        bytes += piece;
        if (tokenizer_->is_end(token)) {
            ends.push_back(static_cast<uint32_t>(token));
        }
    }
    if (ends.empty()) {
        throw Error("invalid_model",
                    "the vocabulary has no end-of-generation token, so no answer can be held to a grammar");
    }
    Api::Vocabulary vocabulary{};
    vocabulary.struct_size = sizeof(vocabulary);
    vocabulary.vocab_size = static_cast<uint32_t>(n_vocab_);
    vocabulary.tok_eos = ends[0];
    vocabulary.token_lens = lengths.data();
    vocabulary.token_bytes = reinterpret_cast<const uint8_t *>(bytes.data());
    vocabulary.tokenize_assumes_string = true;
    vocabulary.tokenize = tokenize;
    vocabulary.tokenize_user_data = tokenizer_.get();
    vocabulary.tok_eos_extra = ends.data() + 1;
    vocabulary.tok_eos_extra_count = static_cast<uint32_t>(ends.size() - 1);
    std::string error(kErrorBytes, '\0');
    vocabulary_ = api_->new_tokenizer(&vocabulary, error.data(), error.size());
    if (vocabulary_ == nullptr) {
        throw Error("missing_library", "llguidance does not take this model's vocabulary: " + words_of(error.c_str()));
    }
}

Grammars::~Grammars() {
    recent_.clear();
    api_->free_tokenizer(vocabulary_);
}

// The library is somebody else's build: what a one-letter grammar lets through says whether we mean the same structs.
void Grammars::self_test() const {
    Token letter = -1;
    for (Token token = 0; token < n_vocab_ && letter < 0; ++token) {
        letter = tokenizer_->bytes(token) == "a" ? token : -1;
    }
    if (letter < 0) {
        return;  // a vocabulary without this letter has nothing to try it with
    }
    const auto odd = [](const char * what) {
        throw Error("missing_library", std::string("llguidance fails its test: ") + what);
    };
    Guide guide(shared_from_this(), new_matcher({"regex", "a"}));
    std::vector<float> logits(static_cast<size_t>(n_vocab_), 0.0f);
    guide.compute();
    guide.mask(logits.data());
    for (Token token = 0; token < n_vocab_; ++token) {
        if ((tokenizer_->bytes(token) == "a") != (logits[static_cast<size_t>(token)] == 0.0f)) {
            odd("its first mask is another one");
        }
    }
    guide.chosen(letter);
    guide.compute();
    if (!guide.complete()) {
        odd("a complete answer is none to it");
    }
}

LlgMatcher * Grammars::new_matcher(const Constraint & constraint) const {
    Api::Init init{};
    api_->init_defaults(&init, vocabulary_);
    init.log_stderr_level = 0;
    init.limits.verbose_errors = false;
    init.limits.max_lexer_states = kMaxLexerStates;
    init.limits.max_items_in_row = kMaxItemsInRow;
    LlgMatcher * matcher = api_->new_matcher(&init, constraint.kind.c_str(), constraint.text.c_str());
    if (const char * error = api_->error(matcher)) {
        const std::string why = words_of(error);
        api_->free_matcher(matcher);
        refuse(why);
    }
    if (api_->mask_bytes(matcher) != mask_words(n_vocab_) * sizeof(uint32_t)) {
        api_->free_matcher(matcher);
        throw Error("missing_library", "llguidance has masks of another size than this vocabulary");
    }
    return matcher;
}

bool Grammars::compute_mask(LlgMatcher * matcher, Mask & mask) const {
    const auto start = std::chrono::steady_clock::now();
    mask.allowed.resize(mask_words(n_vocab_));
    const bool good = api_->compute_mask(matcher, mask.allowed.data(), mask.allowed.size() * sizeof(uint32_t)) == 0;
    mask.slow = std::chrono::steady_clock::now() - start > kSlow;
    return good;
}

std::shared_ptr<const Grammars::Compiled> Grammars::compile(const Constraint & constraint) const {
    auto compiled = std::make_shared<Compiled>(*api_, new_matcher(constraint));
    // Some grammars compile, and fail at the first mask.
    LlgMatcher * trial = api_->clone_matcher(compiled->matcher);
    const bool good = compute_mask(trial, compiled->first);
    const std::string why = good ? "" : words_of(api_->error(trial));
    api_->free_matcher(trial);
    if (!good) {
        refuse(why);
    }
    const std::vector<uint32_t> & allowed = compiled->first.allowed;
    if (std::all_of(allowed.begin(), allowed.end(), [](uint32_t word) { return word == 0; })) {
        refuse("no text at all fits it");
    }
    return compiled;
}

std::shared_ptr<const Grammars::Compiled> Grammars::compiled(const Constraint & constraint) const {
    const std::string key = constraint.kind + '\0' + constraint.text;
    {
        const std::lock_guard lock(mutex_);
        const auto known =
            std::find_if(recent_.begin(), recent_.end(), [&](const auto & entry) { return entry.first == key; });
        if (known != recent_.end()) {
            recent_.splice(recent_.begin(), recent_, known);
            return known->second;
        }
    }
    // A compilation that was left goes on: however many are asked for, no more than a few run at once.
    const std::shared_ptr<void> counted(nullptr,
                                        [self = shared_from_this()](void *) { self->n_compiling_.fetch_sub(1); });
    if (n_compiling_.fetch_add(1) >= kMaxCompiling) {
        throw Error("queue_full", "too many grammars are being compiled just now; try again");
    }
    const auto result = std::make_shared<std::shared_ptr<const Compiled>>();
    const auto end = std::chrono::steady_clock::now() + kCompileTime;
    try {
        machine::run_with_stack(
            kCompileStack,
            [self = shared_from_this(), constraint, result, counted] { *result = self->compile(constraint); },
            [end] { return std::chrono::steady_clock::now() >= end; });
    } catch (const Error & e) {
        if (e.code == "interrupted") {
            refuse("it takes longer than a second to compile: make it smaller");
        }
        throw;
    }
    const std::lock_guard lock(mutex_);
    recent_.emplace_front(key, *result);
    if (recent_.size() > kRecent) {
        recent_.pop_back();
    }
    return *result;
}

std::unique_ptr<Guide> Grammars::guide(const Constraint & constraint) const {
    const std::shared_ptr<const Compiled> compiled_grammar = compiled(constraint);
    return std::make_unique<Guide>(shared_from_this(), api_->clone_matcher(compiled_grammar->matcher),
                                   compiled_grammar->first);
}

}  // namespace pgl
