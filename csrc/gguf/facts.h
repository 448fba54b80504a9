// GGUF facts: what the pinned llama.cpp knows by name. Tables only; revisit them when the pin moves.
#pragma once

#include <cstdint>
#include <string_view>

namespace pgl::facts {

// Text models. "clip" is missing on purpose: a projector, no model.
constexpr std::string_view architectures[] = {
    "afmoe",
    "apertus",
    "arcee",
    "arctic",
    "arwkv7",
    "baichuan",
    "bailingmoe",
    "bailingmoe2",
    "bailingmoe3",
    "bert",
    "bitnet",
    "bloom",
    "chameleon",
    "chatglm",
    "codeshell",
    "cogvlm",
    "cohere2",
    "cohere2moe",
    "command-r",
    "dbrx",
    "deci",
    "deepseek",
    "deepseek2",
    "deepseek2-ocr",
    "deepseek32",
    "deepseek4",
    "dflash",
    "dots1",
    "dots3note",
    "dream",
    "eagle3",
    "ernie4_5",
    "ernie4_5-moe",
    "eurobert",
    "exaone",
    "exaone-moe",
    "exaone4",
    "falcon",
    "falcon-h1",
    "gemma",
    "gemma-embedding",
    "gemma2",
    "gemma3",
    "gemma3n",
    "gemma4",
    "gemma4-assistant",
    "glm-dsa",
    "glm4",
    "glm4moe",
    "glm5-next",
    "gpt-oss",
    "gpt2",
    "gptj",
    "gptneox",
    "granite",
    "granite_swa",
    "granitehybrid",
    "granitemoe",
    "graniteswitch",
    "grok",
    "grovemoe",
    "hrm_text",
    "hunyuan-dense",
    "hunyuan-moe",
    "hunyuan_vl",
    "hy_v3",
    "hy_v4",
    "internlm2",
    "jais",
    "jais2",
    "jamba",
    "jina-bert-v2",
    "jina-bert-v3",
    "kimi-k3",
    "kimi-linear",
    "laguna",
    "lfm2",
    "lfm2moe",
    "llada",
    "llada-moe",
    "llama",
    "llama-embed",
    "llama4",
    "maincoder",
    "mamba",
    "mamba2",
    "maple",
    "mellum",
    "mimo2",
    "minicpm",
    "minicpm3",
    "minimax-01",
    "minimax-m2",
    "minimax-m3",
    "mistral3",
    "mistral4",
    "modern-bert",
    "mpt",
    "muse-glimmer",
    "nanbeige",
    "nemotron",
    "nemotron_h",
    "nemotron_h_moe",
    "neo-bert",
    "nomic-bert",
    "nomic-bert-moe",
    "olmo",
    "olmo2",
    "olmoe",
    "openelm",
    "orion",
    "paddleocr",
    "pangu-embedded",
    "phi2",
    "phi3",
    "phimoe",
    "plamo",
    "plamo2",
    "plamo3",
    "plm",
    "pockettts",
    "qwen",
    "qwen2",
    "qwen2moe",
    "qwen2vl",
    "qwen3",
    "qwen35",
    "qwen35moe",
    "qwen3moe",
    "qwen3next",
    "qwen3tts",
    "qwen3vl",
    "qwen3vlmoe",
    "qwen4exp",
    "refact",
    "rnd1",
    "rwkv6",
    "rwkv6qwen2",
    "rwkv7",
    "seed_oss",
    "smallthinker",
    "smollm3",
    "spark2_5",
    "stablelm",
    "starcoder",
    "starcoder2",
    "step35",
    "t5",
    "t5encoder",
    "talkie",
    "wavtokenizer-dec",
    "xverse",
};

// Without attention heads (head_count 0 in every file of theirs), or with a decoder that has none.
constexpr std::string_view headless[] = {
    "arwkv7", "mamba", "mamba2", "pockettts", "rwkv6", "rwkv6qwen2", "rwkv7", "wavtokenizer-dec",
};

// Which compute every token of a text together and keep nothing between passes: a text in, vectors out.
constexpr std::string_view encoders[] = {
    "bert",        "eurobert", "gemma-embedding", "jina-bert-v2",   "jina-bert-v3",
    "modern-bert", "neo-bert", "nomic-bert",      "nomic-bert-moe", "t5encoder",
};

// Which fill in masked tokens of a whole text over and over, instead of continuing it.
constexpr std::string_view diffusion[] = {"dream", "llada", "llada-moe", "rnd1"};

// An encoder and a decoder that reads the encoder's output.
constexpr std::string_view encoder_decoders[] = {"t5"};

// Parts of another model (drafters) or of a speech system: nothing that takes a text and gives one.
constexpr std::string_view parts[] = {"dflash",    "eagle3",   "gemma4-assistant",
                                      "pockettts", "qwen3tts", "wavtokenizer-dec"};

// Whose embeddings may pass through one more layer, dense_2, which then sets their width.
constexpr std::string_view layer_after_pooling[] = {"lfm2", "lfm2moe"};

// Whose embedding width the loader computes or checks by itself, whatever embedding_length is.
constexpr std::string_view own_embedding_width[] = {"deepseek4", "gemma4-assistant", "qwen4exp", "wavtokenizer-dec"};

// Which read embeddings wider than they compute them, past the tensor's end: they generate only.
constexpr std::string_view no_embeddings[] = {"deepseek4", "qwen4exp"};

// Whose computation takes layer 0's head counts for all layers; with others it stops at an assertion. Not complete:
// only architectures known to have no file with differing counts.
constexpr std::string_view uniform_heads[] = {
    "command-r", "exaone",   "falcon",   "gemma",   "gemma2",   "glm4",       "gpt2", "internlm2",
    "llama",     "mistral3", "mpt",      "olmo",    "olmo2",    "phi2",       "phi3", "qwen2",
    "qwen2moe",  "qwen3",    "qwen3moe", "smollm3", "stablelm", "starcoder2",
};

// Whose attention takes one length for keys and values of all layers; with others it stops at an assertion.
constexpr std::string_view one_head_length[] = {
    "afmoe",      "apertus",        "arcee",          "arctic",      "baichuan",      "bailingmoe2",   "bert",
    "bitnet",     "bloom",          "chameleon",      "chatglm",     "codeshell",     "cogvlm",        "cohere2",
    "cohere2moe", "command-r",      "dbrx",           "deci",        "deepseek",      "deepseek4",     "dots1",
    "dream",      "ernie4_5",       "ernie4_5-moe",   "eurobert",    "exaone",        "exaone-moe",    "exaone4",
    "falcon",     "gemma",          "gemma2",         "gemma3",      "glm4",          "glm4moe",       "gpt-oss",
    "gpt2",       "gptneox",        "granite",        "granite_swa", "granitehybrid", "graniteswitch", "grok",
    "grovemoe",   "hunyuan-moe",    "hunyuan_vl",     "hy_v3",       "internlm2",     "jais",          "jais2",
    "laguna",     "lfm2",           "lfm2moe",        "llada",       "llada-moe",     "llama",         "llama-embed",
    "llama4",     "maincoder",      "maple",          "mellum",      "minicpm",       "minimax-01",    "minimax-m2",
    "minimax-m3", "mistral3",       "modern-bert",    "mpt",         "muse-glimmer",  "nanbeige",      "nemotron",
    "nemotron_h", "nemotron_h_moe", "neo-bert",       "olmo",        "olmo2",         "olmoe",         "openelm",
    "orion",      "paddleocr",      "pangu-embedded", "phi2",        "phi3",          "plamo",         "plamo3",
    "qwen",       "qwen2",          "qwen2moe",       "qwen2vl",     "qwen3",         "qwen35",        "qwen35moe",
    "qwen3moe",   "qwen3next",      "qwen3vl",        "qwen3vlmoe",  "qwen4exp",      "refact",        "rnd1",
    "seed_oss",   "smallthinker",   "smollm3",        "spark2_5",    "stablelm",      "starcoder",     "starcoder2",
    "t5",         "talkie",         "xverse",
};

// Which rotate every number of a head: rope.dimension_count is the length of a head.
constexpr std::string_view whole_head_rotated[] = {
    "apertus",      "arcee",          "arctic",     "baichuan", "chameleon",     "codeshell",    "cogvlm",
    "cohere2moe",   "dbrx",           "deci",       "deepseek", "dots1",         "dream",        "ernie4_5",
    "ernie4_5-moe", "exaone",         "exaone-moe", "exaone4",  "falcon",        "gpt-oss",      "granite",
    "granite_swa",  "graniteswitch",  "grok",       "grovemoe", "hunyuan-dense", "hunyuan-moe",  "hunyuan_vl",
    "hy_v3",        "internlm2",      "jais2",      "llada",    "llada-moe",     "llama",        "llama4",
    "maincoder",    "mellum",         "mistral3",   "olmo",     "olmo2",         "olmoe",        "orion",
    "paddleocr",    "pangu-embedded", "plamo",      "qwen2",    "qwen2moe",      "qwen2vl",      "qwen3",
    "qwen3moe",     "qwen3vl",        "qwen3vlmoe", "rnd1",     "seed_oss",      "smallthinker", "smollm3",
    "starcoder2",   "talkie",         "xverse",
};

// Whose queries are as wide as the embedding, whatever head_count and key_length say.
constexpr std::string_view queries_as_wide_as_embedding[] = {
    "arctic",   "baichuan",  "bailingmoe2", "bert",      "bitnet",     "bloom",        "chameleon",      "codeshell",
    "cohere2",  "command-r", "dbrx",        "deepseek",  "dream",      "eurobert",     "falcon",         "gpt2",
    "gptneox",  "grok",      "internlm2",   "jais",      "jamba",      "jina-bert-v2", "jina-bert-v3",   "lfm2",
    "lfm2moe",  "llada-moe", "mpt",         "nemotron",  "neo-bert",   "nomic-bert",   "nomic-bert-moe", "olmo",
    "olmo2",    "olmoe",     "orion",       "phi2",      "phi3",       "phimoe",       "plamo",          "qwen2",
    "qwen2moe", "qwen2vl",   "stablelm",    "starcoder", "starcoder2", "xverse",
};

// Whose layers may see a window of the text.
constexpr std::string_view windowed[] = {
    "afmoe",           "cohere2", "cohere2moe", "deepseek4",    "dots3note", "exaone-moe", "exaone4",
    "gemma-embedding", "gemma2",  "gemma3",     "gemma3n",      "gemma4",    "gpt-oss",    "granite_swa",
    "laguna",          "lfm2",    "llama4",     "maple",        "mellum",    "mimo2",      "modern-bert",
    "muse-glimmer",    "olmo2",   "plamo3",     "smallthinker", "spark2_5",  "step35",
};

// Whose experts' gate is a function that the file must name: these assume none.
constexpr std::string_view gate_by_name[] = {
    "bailingmoe2", "bailingmoe3", "deepseek32",  "deepseek4", "dots1",      "dots3note",  "exaone-moe",
    "hy_v4",       "kimi-k3",     "kimi-linear", "lfm2moe",   "minimax-m2", "minimax-m3", "smallthinker",
};

// Which rotate nothing.
constexpr std::string_view without_rotation[] = {
    "arwkv7",           "bloom",   "glm5-next",   "gpt2",       "gptj",   "jais", "jamba",
    "jina-bert-v2",     "kimi-k3", "kimi-linear", "mamba",      "mamba2", "mpt",  "nemotron_h",
    "nemotron_h_moe",   "refact",  "rwkv6",       "rwkv6qwen2", "rwkv7",  "t5",   "t5encoder",
    "wavtokenizer-dec",
};

// Keys that one architecture alone reads so: the values that it can compute with.
struct OwnRange {
    std::string_view architecture, key;
    uint32_t low, high;
};
constexpr OwnRange own_ranges[] = {
    {"deepseek4", "hyper_connection.count", 4, 4},
    {"deepseek4", "hyper_connection.sinkhorn_iterations", 1, 1 << 20},
    {"glm5-next", "hyper_connection.count", 4, 4},
    {"glm5-next", "hyper_connection.sinkhorn_iterations", 1, 1 << 20},
    {"minimax-m3", "attention.indexer.top_k", 1, 1 << 24},
    {"plamo2", "ssm.group_count", 0, 0},
};

// By number of general.file_type; the names users know files by.
constexpr std::string_view quantizations[] = {
    "F32",    "F16",     "Q4_0",   "Q4_1",   "",       "",          "",       "Q8_0",  "Q5_0",    "Q5_1",   "Q2_K",
    "Q3_K_S", "Q3_K_M",  "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S",    "Q5_K_M", "Q6_K",  "IQ2_XXS", "IQ2_XS", "Q2_K_S",
    "IQ3_XS", "IQ3_XXS", "IQ1_S",  "IQ4_NL", "IQ3_S",  "IQ3_M",     "IQ2_S",  "IQ2_M", "IQ4_XS",  "IQ1_M",  "BF16",
    "",       "",        "",       "TQ1_0",  "TQ2_0",  "MXFP4_MOE", "NVFP4",  "Q1_0",  "Q2_0",
};

// tokenizer.ggml.model. The ids are what the loader assumes when the file gives none (-1 = none).
enum class Vocab { none, spm, bpe, wpm, ugm, other };
struct Tokenizer {
    std::string_view name;
    Vocab vocab;
    int bos, eos, sep;
    bool add_bos, add_eos;
};
constexpr Tokenizer tokenizers[] = {
    {"llama", Vocab::spm, 1, 2, -1, true, false},        {"gpt2", Vocab::bpe, 11, 11, -1, false, false},
    {"hybriddna", Vocab::bpe, 11, 11, -1, false, false}, {"whitespace", Vocab::bpe, 11, 11, -1, false, false},
    {"gemma4", Vocab::bpe, -1, -1, -1, true, false},     {"bert", Vocab::wpm, 101, -1, 102, true, false},
    {"t5", Vocab::ugm, -1, 1, -1, false, true},          {"rwkv", Vocab::other, -1, -1, -1, false, false},
    {"plamo2", Vocab::other, 1, 2, -1, false, false},    {"test", Vocab::other, -1, -1, -1, false, false},
    {"no_vocab", Vocab::none, -1, -1, -1, false, false}, {"none", Vocab::none, -1, -1, -1, false, false},
};

// tokenizer.ggml.pre of byte-pair vocabularies: those that add BOS unless told otherwise; those without a default BOS.
constexpr std::string_view pre_with_bos[] = {
    "chameleon",    "falcon-h1", "falcon3",   "gemma4",   "granite-embed-multi-311m",
    "jina-v5-nano", "lfm2",      "llama-bpe", "llama-v3", "llama3",
    "midm-2.0",     "pixtral",   "tekken",
};
constexpr std::string_view pre_without_default_bos[] = {"chatglm-bpe", "glm4", "glm5"};

template <typename Table> constexpr bool contains(const Table & table, std::string_view name) {
    for (const std::string_view entry : table) {
        if (entry == name) {
            return true;
        }
    }
    return false;
}

}  // namespace pgl::facts
