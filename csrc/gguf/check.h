// GGUF check: semantic validation of a model file before llama.cpp sees it, with its own bounded parser. Pure.
#pragma once

#include "request.h"

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace pgl {

// What a file says about itself, after every rule has passed. Sizes are of the whole model, all splits together.
// Counts that the file does not state are 0; per-layer values are the largest of any layer.
struct GgufSummary {
    uint64_t n_tensors = 0;
    uint64_t file_bytes = 0, tensor_bytes = 0, n_params = 0;
    int32_t n_splits = 1;
    bool vocab_only = false;             // no tensors: a tokenizer, not a model that can run

    std::string type;                        // general.type: "model" (also if absent) or "adapter"
    std::string architecture, name;
    std::string quantization;                // "Q4_K_M": general.file_type's, else the type that holds most bytes
    std::string pre_tokenizer;               // tokenizer.ggml.pre: "llama-bpe", ...; "" if absent
    std::string chat_template;
    std::string rerank_template;             // tokenizer.chat_template.rerank
    std::vector<Task> tasks;                 // what it can be asked for; none for a part of another model
    std::vector<std::string> labels;         // of a classifier's scores
    uint32_t alignment = 32;              // of the tensors' data, in bytes

    int32_t n_layer = 0, n_embd = 0, n_head = 0, n_head_kv = 0, n_ctx_train = 0, n_vocab = 0;
    int32_t pooling = -1;  // llama.cpp's number: 0 none, 1 mean, 2 first, 3 last token, 4 rank
    bool whole_text = false;  // attention in both directions: a text is computed in one pass

    // KV cache bytes per token: an upper bound where layers do not cache (recurrent layers are not counted when the
    // file marks them with 0 KV heads), without the padding of sliding windows or latent attention's savings.
    uint64_t cache_bytes_f16 = 0, cache_bytes_q8_0 = 0;

    // What each layer holds, for placing layers on GPUs. Weights outside the layers are either read by the first, on
    // the CPU (the token table and its like), or go with the output, which may be the token table over again.
    struct Layer {
        uint64_t weights_bytes = 0;
        uint64_t cache_bytes_f16 = 0, cache_bytes_q8_0 = 0;  // per token
    };
    std::vector<Layer> layers;
    uint64_t input_bytes = 0, output_bytes = 0;
    bool tied = false;  // the output is computed with the token table: it has none of its own

    std::map<std::string, std::string> metadata;  // scalar keys; strings cut at 256 bytes, on a character

    template <typename Visit> static constexpr void fields(Visit && field) {
        field("file_bytes", &GgufSummary::file_bytes);
        field("tensor_bytes", &GgufSummary::tensor_bytes);
        field("n_params", &GgufSummary::n_params);
        field("n_splits", &GgufSummary::n_splits);
        field("vocab_only", &GgufSummary::vocab_only);
        field("architecture", &GgufSummary::architecture);
        field("name", &GgufSummary::name);
        field("tasks", &GgufSummary::tasks);
        field("labels", &GgufSummary::labels);
        field("quantization", &GgufSummary::quantization);
        field("chat_template", &GgufSummary::chat_template);
        field("n_layer", &GgufSummary::n_layer);
        field("n_embd", &GgufSummary::n_embd);
        field("n_head", &GgufSummary::n_head);
        field("n_head_kv", &GgufSummary::n_head_kv);
        field("n_ctx_train", &GgufSummary::n_ctx_train);
        field("n_vocab", &GgufSummary::n_vocab);
        field("cache_bytes_f16", &GgufSummary::cache_bytes_f16);
        field("cache_bytes_q8_0", &GgufSummary::cache_bytes_q8_0);
        field("metadata", &GgufSummary::metadata);
    }
};

enum class GgufRole : uint8_t {
    model,  // weights or a vocabulary: container, shape, vocabulary, tensor types, splits
    adapter,  // a LoRA file: container, tensor types, general.type; adapter.h looks at the shapes too
};

// Reads the header only (the file is mapped, never read whole). Errors, as pgl::Error:
//   not_found      the path cannot be opened or is no regular file
//   invalid_model  a rule is broken; the message names key or tensor, value and what is allowed, and so do details
//                  ("key" or "tensor", "value", "allowed"). Never the path.
GgufSummary check_gguf(const std::string & path, GgufRole role = GgufRole::model);

}  // namespace pgl
