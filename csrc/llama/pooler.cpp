#include "llama/pooler.h"

#include "gguf/check.h"
#include "kernels/kernels.h"
#include "llama/log.h"
#include "llama/memory_plan.h"
#include "platform/machine.h"

#include <llama.h>

#include <algorithm>
#include <cmath>

namespace pgl {
namespace {

constexpr int32_t kLengthStep = 512;   // tokens: shorter texts share one context
// llama.cpp computes logits for every token that it embeds, so a pass takes no more tokens than this holds.
constexpr uint64_t kLogitsBytes = 64 * kMiB;

}  // namespace

Pooler::Pooler(Weights & weights, const GgufSummary & summary, const EngineOptions & options)
    : weights_(weights), flash_attention_(options.flash_attention), n_head_(static_cast<uint64_t>(summary.n_head)),
      cache_bytes_per_token_(summary.cache_bytes_f16), pooling_(summary.pooling), whole_text_(summary.whole_text) {}

std::vector<float> Pooler::embed(const std::vector<Token> & tokens) {
    std::vector<float> embedding = pooled(tokens);
    double sum = 0;
    for (const float value : embedding) {
        sum += static_cast<double>(value) * value;
    }
    if (!std::isfinite(sum)) {
        throw Error("numeric_error", "the embedding holds NaN or infinity");
    }
    const auto scale = static_cast<float>(sum > 0 ? 1 / std::sqrt(sum) : 0);
    for (float & value : embedding) {
        value *= scale;
    }
    return embedding;
}

std::vector<float> Pooler::rank(const std::vector<Token> & tokens) {
    std::vector<float> scores = pooled(tokens);
    if (!std::all_of(scores.begin(), scores.end(), [](float score) { return std::isfinite(score); })) {
        throw Error("numeric_error", "a score is NaN or infinity");
    }
    return scores;
}

// A context for texts of at least `n_tokens`. Its buffers grow with the text, so it is no larger than was asked for.
void Pooler::prepare(int32_t n_tokens) {
    if (context_ && n_tokens <= n_context_tokens_) {
        return;
    }
    context_.reset();
    n_context_tokens_ = std::min((n_tokens + kLengthStep - 1) / kLengthStep * kLengthStep,
                                 std::max(n_tokens, llama_model_n_ctx_train(weights_.model())));
    const auto n_vocab = static_cast<uint64_t>(llama_vocab_n_tokens(llama_model_get_vocab(weights_.model())));
    const auto n_embd = static_cast<uint64_t>(llama_model_n_embd(weights_.model()));
    const uint64_t n_text = static_cast<uint64_t>(n_context_tokens_);
    const uint64_t chunk = std::clamp<uint64_t>(kLogitsBytes / (4 * n_vocab), 32, 512);
    const uint64_t n_pass = whole_text_ ? n_text : std::min(chunk, n_text);
    // Every token of a pass takes activations and logits; every pair of tokens an entry of the mask, and of each head's
    // scores where attention is computed the plain way.
    const uint64_t per_pair = 6 + (flash_attention_ ? 0 : 8 * std::max<uint64_t>(1, n_head_));
    const uint64_t need = kMemoryMargin / 2 + n_pass * (64 * n_embd + 8 * n_vocab) + n_pass * n_text * per_pair +
                          (whole_text_ ? 0 : n_text * cache_bytes_per_token_);
    const uint64_t have = machine::available_bytes();
    if (need > have) {
        throw Error("out_of_memory",
                    "a text of " + std::to_string(n_tokens) + " tokens needs " + mib(need) + " beside the model, and " +
                        mib(have) + " are available",
                    {{"need", std::to_string(need)}, {"have", std::to_string(have)}});
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(n_text);
    params.n_batch = params.n_ubatch = static_cast<uint32_t>(n_pass);
    params.n_seq_max = 1;
    params.embeddings = true;
    if (whole_text_ && pooling_ <= LLAMA_POOLING_TYPE_NONE) {
        params.pooling_type = LLAMA_POOLING_TYPE_MEAN;
    } else if (!whole_text_ && pooling_ >= LLAMA_POOLING_TYPE_NONE && pooling_ != LLAMA_POOLING_TYPE_RANK) {
        params.pooling_type = LLAMA_POOLING_TYPE_NONE;   // the pooling is done here, over all chunks
    }
    context_ = weights_.make_context(params, "the context for embeddings");
}

std::vector<float> Pooler::pooled(const std::vector<Token> & tokens) {
    prepare(static_cast<int32_t>(tokens.size()));
    try {
        if (llama_memory_t memory = llama_get_memory(context_.get()); memory != nullptr) {
            llama_memory_clear(memory, false);
        }
        return whole_text_ ? pool_whole(tokens) : pool_in_chunks(tokens);
    } catch (const std::bad_alloc &) {
        throw weights_.failed(context_, "memory ran out");
    } catch (const Error &) {
        context_.reset();
        throw;
    } catch (const std::exception & e) {
        throw weights_.failed(context_, e.what());
    }
}

void Pooler::compute(Token * tokens, int32_t n_tokens) {
    llama_batch batch = llama_batch_get_one(tokens, n_tokens);
    std::vector<int8_t> outputs(static_cast<size_t>(n_tokens), 1);   // every token's row is wanted
    batch.logits = outputs.data();
    const bool encode = llama_get_memory(context_.get()) == nullptr || llama_model_has_encoder(weights_.model());
    kernels::begin_pass();
    const int32_t status = encode ? llama_encode(context_.get(), batch) : llama_decode(context_.get(), batch);
    log::expect_abort(false);
    if (status == 2) {
        throw Error("cancelled", "the request was cancelled");
    }
    if (status == -2) {
        throw Error("out_of_memory", "memory ran out while computing: " + log::complaint());
    }
    if (status != 0) {
        throw Error("internal_error", "the computation failed (" + std::to_string(status) + ")");
    }
}

// n values of the only sequence.
std::vector<float> Pooler::sequence_values(size_t n) const {
    const float * values = llama_get_embeddings_seq(context_.get(), 0);
    if (values == nullptr) {
        throw Error("internal_error", "the model gave no values");
    }
    return {values, values + n};
}

std::vector<float> Pooler::pool_whole(std::vector<Token> tokens) {
    compute(tokens.data(), static_cast<int32_t>(tokens.size()));
    return sequence_values(n_pooled());
}

// A causal model is read in chunks, so that its buffers need not grow with the text; the pooling is done here. The last
// token's scores are what a ranking model leaves after its last chunk.
std::vector<float> Pooler::pool_in_chunks(std::vector<Token> tokens) {
    const size_t n_chunk = llama_n_ubatch(context_.get());
    const size_t width = n_pooled();
    std::vector<double> sum(width, 0);
    const auto add = [&](const float * row) {
        for (size_t i = 0; i < width; ++i) {
            sum[i] += row[i];
        }
    };
    for (size_t at = 0; at < tokens.size(); at += n_chunk) {
        const size_t n = std::min(n_chunk, tokens.size() - at);
        compute(tokens.data() + at, static_cast<int32_t>(n));
        if (pooling_ == LLAMA_POOLING_TYPE_RANK) {
            continue;
        }
        const float * rows = llama_get_embeddings(context_.get());
        if (rows == nullptr) {
            throw Error("internal_error", "the model gave no embeddings");
        }
        const bool last = at + n == tokens.size();
        if (pooling_ == LLAMA_POOLING_TYPE_LAST) {
            if (last) {
                add(rows + (n - 1) * width);
            }
        } else if (pooling_ == LLAMA_POOLING_TYPE_CLS) {
            if (at == 0) {
                add(rows);
            }
        } else {
            for (size_t row = 0; row < n; ++row) {
                add(rows + row * width);
            }
        }
    }
    if (pooling_ == LLAMA_POOLING_TYPE_RANK) {
        return sequence_values(width);
    }
    const bool mean = pooling_ != LLAMA_POOLING_TYPE_LAST && pooling_ != LLAMA_POOLING_TYPE_CLS;
    const double n_summed = mean ? static_cast<double>(tokens.size()) : 1;
    std::vector<float> result(width);
    for (size_t i = 0; i < width; ++i) {
        result[i] = static_cast<float>(sum[i] / n_summed);
    }
    return result;
}

size_t Pooler::n_pooled() const {
    return pooling_ == LLAMA_POOLING_TYPE_RANK ? llama_model_n_cls_out(weights_.model())
                                               : static_cast<size_t>(llama_model_n_embd_out(weights_.model()));
}

}  // namespace pgl
