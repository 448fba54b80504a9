// Text of one answer: an incremental UTF-8 decoder that feeds an Aho-Corasick automaton.
#include "engine/text.h"

#include <algorithm>
#include <unordered_map>

namespace pgl {

// The automaton. Edges live in one hash table keyed (node, byte): constant time whatever the alphabet, and memory in
// proportion to the patterns' bytes.
class TextStream::Patterns {
  public:
    struct Node {
        int32_t fail = 0;        // longest proper suffix that is a node too
        int32_t depth = 0;       // bytes from the root = length of the text it stands for
        int32_t match = 0;       // length of the longest pattern that ends here, 0 = none
        FinishReason reason = FinishReason::none;   // of that pattern
    };

    Patterns(const std::vector<std::string> & stop, const std::vector<std::string> & filter) : nodes_(1) {
        for (const std::string & pattern : filter) {
            add(pattern, FinishReason::content_filter);
        }
        for (const std::string & pattern : stop) {
            add(pattern, FinishReason::stop);
        }
        link();
    }

    int32_t step(int32_t state, unsigned char byte) const {
        for (;;) {
            const auto it = edges_.find(key(state, byte));
            if (it != edges_.end()) {
                return it->second;
            }
            if (state == 0) {
                return 0;
            }
            state = nodes_[state].fail;
        }
    }

    const Node & node(int32_t state) const { return nodes_[state]; }

  private:
    static uint64_t key(int32_t node, unsigned char byte) { return static_cast<uint64_t>(node) << 8 | byte; }

    void add(const std::string & pattern, FinishReason reason) {
        int32_t at = 0;
        for (const char c : pattern) {
            const auto byte = static_cast<unsigned char>(c);
            const auto [it, fresh] = edges_.try_emplace(key(at, byte), static_cast<int32_t>(nodes_.size()));
            if (fresh) {
                nodes_.push_back({});
                nodes_.back().depth = nodes_[at].depth + 1;
                order_.push_back({at, byte});
            }
            at = it->second;
        }
        if (at != 0 && nodes_[at].match == 0) {   // filters come first: a string in both lists is a filter
            nodes_[at].match = nodes_[at].depth;
            nodes_[at].reason = reason;
        }
    }

    // Breadth first, so that a node's suffixes, all shorter, are finished before it.
    void link() {
        std::stable_sort(order_.begin(), order_.end(), [this](const Edge & a, const Edge & b) {
            return nodes_[a.from].depth < nodes_[b.from].depth;
        });
        for (const Edge & edge : order_) {
            Node & node = nodes_[edges_.at(key(edge.from, edge.byte))];
            if (edge.from != 0) {
                node.fail = step(nodes_[edge.from].fail, edge.byte);
            }
            if (node.match == 0) {   // its own pattern, if any, is the longest
                node.match = nodes_[node.fail].match;
                node.reason = nodes_[node.fail].reason;
            }
        }
        order_.clear();
        order_.shrink_to_fit();
    }

    struct Edge {
        int32_t from;
        unsigned char byte;
    };

    std::vector<Node> nodes_;
    std::unordered_map<uint64_t, int32_t> edges_;
    std::vector<Edge> order_;   // while building
};

TextStream::TextStream(const std::vector<std::string> & stop, const std::vector<std::string> & filter,
                       bool include_stop)
    : include_stop_(include_stop) {
    if (!stop.empty() || !filter.empty()) {
        patterns_ = std::make_unique<const Patterns>(stop, filter);
    }
}

TextStream::~TextStream() = default;
TextStream::TextStream(TextStream &&) noexcept = default;
TextStream & TextStream::operator=(TextStream &&) noexcept = default;

// Characters enter the text whole, so a held prefix of a pattern always begins at a character. Invalid input follows
// the Unicode recommendation (one U+FFFD for each maximal part of a valid character), as Python does.
void TextStream::decode(unsigned char byte) {
    if (n_missing_ > 0) {
        if (next_lo_ <= byte && byte <= next_hi_) {
            partial_[n_partial_++] = static_cast<char>(byte);
            next_lo_ = 0x80;
            next_hi_ = 0xBF;
            if (--n_missing_ == 0) {
                append(partial_, n_partial_);
                n_partial_ = 0;
            }
            return;
        }
        n_missing_ = n_partial_ = 0;
        next_lo_ = 0x80;
        next_hi_ = 0xBF;
        append("\xEF\xBF\xBD", 3);   // and the byte is judged anew
    }
    if (byte < 0x80) {
        const char c = static_cast<char>(byte);
        append(&c, 1);
        return;
    }
    if (byte < 0xC2 || byte > 0xF4) {   // a stray continuation, an overlong form, or beyond U+10FFFF
        append("\xEF\xBF\xBD", 3);
        return;
    }
    n_missing_ = byte < 0xE0 ? 1 : byte < 0xF0 ? 2 : 3;
    partial_[0] = static_cast<char>(byte);
    n_partial_ = 1;
    switch (byte) {   // the second byte's range: no overlong form, no surrogate, nothing beyond U+10FFFF
    case 0xE0:
        next_lo_ = 0xA0;
        break;
    case 0xED:
        next_hi_ = 0x9F;
        break;
    case 0xF0:
        next_lo_ = 0x90;
        break;
    case 0xF4:
        next_hi_ = 0x8F;
        break;
    default:
        break;
    }
}

void TextStream::append(const char * bytes, size_t n) {
    if (ended_ != FinishReason::none) {
        return;
    }
    if (patterns_ == nullptr) {
        held_.append(bytes, n);
        n_decoded_ += n;
    } else {
        for (size_t i = 0; i < n; ++i) {
            held_.push_back(bytes[i]);
            ++n_decoded_;
            state_ = patterns_->step(state_, static_cast<unsigned char>(bytes[i]));
            const Patterns::Node & node = patterns_->node(state_);
            const bool on_hold = stops_on_hold_ && node.reason == FinishReason::stop;
            if (node.match > 0 && n_decoded_ - node.match < match_start_ && !on_hold) {
                match_start_ = n_decoded_ - node.match;
                match_length_ = node.match;
                match_reason_ = node.reason;
            }
            // The state is the longest undecided candidate, so none that is still open starts before this.
            if (match_reason_ != FinishReason::none && n_decoded_ - node.depth >= match_start_) {
                ended_ = match_reason_;
                return;
            }
        }
    }
    // The unfinished character that some tokens ended in is finished now (or was given up).
    token_ends_.insert(token_ends_.end(), n_open_tokens_, n_decoded_);
    n_open_tokens_ = 0;
}

TextStream::Out TextStream::push(std::string_view bytes) {
    Out out;
    if (ended_ != FinishReason::none) {
        out.n_tokens_done = 1;
        out.reason = ended_;
        return out;
    }
    for (const char c : bytes) {
        decode(static_cast<unsigned char>(c));
    }
    if (n_missing_ > 0) {
        ++n_open_tokens_;
    } else {
        token_ends_.push_back(n_decoded_);
    }
    return take();
}

TextStream::Out TextStream::finish() {
    if (ended_ != FinishReason::none) {
        Out out;
        out.reason = ended_;
        return out;
    }
    ended_ = match_reason_;   // a longer pattern that began earlier never completed
    n_partial_ = n_missing_ = 0;
    next_lo_ = 0x80;
    next_hi_ = 0xBF;
    token_ends_.insert(token_ends_.end(), n_open_tokens_, n_decoded_);
    n_open_tokens_ = 0;
    state_ = 0;
    return take();
}

// Delivers what no open candidate reaches.
TextStream::Out TextStream::take() {
    Out out;
    const uint64_t open = patterns_ == nullptr ? n_decoded_ : n_decoded_ - patterns_->node(state_).depth;
    const uint64_t start = n_decoded_ - (held_.size() - head_);   // position of the first byte not yet delivered
    uint64_t until = std::min(open, match_start_);
    if (ended_ != FinishReason::none) {
        until = match_start_;
        out.match = held_.substr(head_ + (match_start_ - start), match_length_);
        if (include_stop_ && ended_ == FinishReason::stop) {
            until += match_length_;
        }
    }
    if (until > start) {
        out.text.assign(held_, head_, until - start);
        head_ += until - start;
    }
    if (head_ > held_.size() / 2) {   // seldom enough to cost a constant per byte
        held_.erase(0, head_);
        head_ = 0;
    }
    out.reason = ended_;
    if (ended_ != FinishReason::none) {
        out.n_tokens_done = static_cast<int32_t>(token_ends_.size()) + n_open_tokens_;
        token_ends_.clear();
        n_open_tokens_ = 0;
        held_.clear();
        head_ = 0;
    } else {
        while (!token_ends_.empty() && token_ends_.front() <= until) {
            token_ends_.pop_front();
            ++out.n_tokens_done;
        }
    }
    return out;
}

}  // namespace pgl
