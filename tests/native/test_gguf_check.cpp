// check_gguf: every rule by a file that breaks it and nothing else, files that must pass, and thousands of mutations
// that must end in a summary or a named refusal. With --accept FILE...: real files, each of which must pass.
#include "check.h"
#include "gguf/check.h"
#include "gguf_builder.h"

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

using namespace pgl;
using builder::bytes_of;
using builder::Gguf;
using builder::TempDir;
using builder::tiny_llama;
using Strings = std::vector<std::string>;
using Change = std::function<void(Gguf &)>;

namespace {

const TempDir temp;
const std::string tokens_key = "tokenizer.ggml.tokens", types_key = "tokenizer.ggml.token_type";
enum : uint32_t { F32, F16, Q4_0, Q8_0 = 8, Q8_1, Q4_K = 12, Q8_K = 15, I8 = 24, I16, I32, I64, F64, BF16 = 30 };

std::string last_value;   // that the last refusal named

// The refusal of a file: which key, tensor, header field or file it names.
std::string refusal(const std::string & path, GgufRole role = GgufRole::model) {
    try {
        check_gguf(path, role);
    } catch (const Error & e) {
        if (e.code != "invalid_model") {
            return e.code;
        }
        CHECK_EQ(e.details.count("value"), 1u);
        CHECK_EQ(e.details.count("allowed"), 1u);
        last_value = e.details.at("value");
        for (const char * what : {"key", "tensor", "header", "file"}) {
            if (e.details.count(what) > 0) {
                CHECK(std::string(e.what()).find(e.details.at(what)) != std::string::npos);
                CHECK(std::string(e.what()).find(temp.path()) == std::string::npos);   // no paths in messages
                return std::string(what) + " " + e.details.at(what);
            }
        }
        return std::string("nameless: ") + e.what();
    }
    return "accepted";
}

std::string refusal(const Gguf & gguf, GgufRole role = GgufRole::model) {
    return refusal(temp.write("model.gguf", gguf.file()), role);
}

struct Case {
    const char * name;
    std::string names;    // what the refusal must name, maybe with ": " and the value it must show
    Change change;
};

void expect(const std::vector<Case> & cases, const Gguf & base, GgufRole role = GgufRole::model) {
    check::context = "the base file";
    CHECK_EQ(refusal(base, role), std::string("accepted"));
    for (const Case & c : cases) {
        check::context = c.name;
        Gguf gguf = base;
        c.change(gguf);
        const std::string named = refusal(gguf, role);
        CHECK_EQ(c.names.find(": ") == std::string::npos ? named : named + ": " + last_value, c.names);
    }
}

Gguf with_tokens(const char * model, Strings tokens) {
    Gguf g = tiny_llama();
    g.set("tokenizer.ggml.model", model);
    g.set(tokens_key, builder::string, tokens);
    g.erase("tokenizer.ggml.scores");
    g.erase(types_key);
    return g;
}

Gguf bpe() {
    Gguf g = with_tokens("gpt2", {"a", "b", "ab", "<|end|>"});
    g.set("tokenizer.ggml.merges", builder::string, Strings{"a b"});
    return g;
}

Gguf wpm() {
    Gguf g = with_tokens("bert", {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"});
    g.set("tokenizer.ggml.seperator_token_id", 3u);
    return g;
}

// The same file as a model of another architecture.
void as(Gguf & g, const std::string & architecture) {
    for (builder::Key & k : g.keys) {
        if (k.name.rfind("llama.", 0) == 0) {
            k.name = architecture + k.name.substr(5);
        }
    }
    g.set("general.architecture", architecture.c_str());
}

// Rules of some architectures only: the keys that break them there, and that one of another kind may have.
void architecture_rules() {
    using Key = std::pair<const char *, std::vector<int32_t>>;
    struct Rule {
        const char * architecture;
        std::vector<Key> keys;       // one value: a scalar
        const char * refused;                                              // the key named; "" = accepted
    };
    // The keys of multi-head latent attention as they fit each other, and one more or another one.
    const auto latent = [](const Key & other) {
        std::vector<Key> keys = {{"attention.kv_lora_rank", {32}},   {"rope.dimension_count", {16}},
                                 {"attention.key_length", {48}},     {"attention.value_length", {32}},
                                 {"attention.key_length_mla", {24}}, {"attention.value_length_mla", {16}},
                                 {"attention.head_count_kv", {1}}};
        if (other.first != nullptr) {
            keys.push_back(other);   // the later one counts
        }
        return keys;
    };
    // Four heads of 16 numbers, an embedding of 64, two layers.
    const std::vector<Rule> rules = {
        {"llama", {{"attention.value_length", {8}}}, "attention.value_length"},
        {"qwen3", {{"attention.key_length", {8}}}, "attention.key_length"},
        {"exaone4", {{"attention.value_length", {8}}}, "attention.value_length"},
        {"gemma", {{"attention.value_length", {8}}}, "attention.value_length"},
        {"minicpm3", {{"attention.value_length", {8}}}, ""},
        {"llama", {{"attention.key_length", {0}}}, "attention.key_length"},
        {"deepseek2", {{"attention.key_length", {24}}, {"attention.value_length", {16}}}, ""},
        {"deepseek2", latent({}), ""},
        {"deepseek2", latent({"attention.key_length", {24}}), "attention.key_length"},
        {"deepseek2", latent({"attention.value_length", {16}}), "attention.value_length"},
        {"deepseek2", latent({"attention.key_length_mla", {16}}), "attention.key_length_mla"},
        {"dots3note", latent({"attention.kv_lora_rank_swa", {32}}), ""},
        {"dots3note", latent({"attention.kv_lora_rank_swa", {16}}), "attention.key_length_swa"},
        {"cohere2", {{"attention.key_length_swa", {8}}}, "attention.key_length_swa"},
        {"cohere2", {{"attention.value_length_swa", {16}}}, ""},
        {"gemma4", {{"attention.key_length_swa", {8}}, {"attention.value_length_swa", {8}}}, ""},
        {"llama", {{"rope.dimension_count", {0}}}, "rope.dimension_count"},
        {"qwen35", {{"rope.dimension_count", {0}}}, "rope.dimension_count"},
        {"gpt2", {{"rope.dimension_count", {0}}}, ""},
        {"llama", {{"rope.dimension_count", {8}}}, "rope.dimension_count"},
        {"phi2", {{"rope.dimension_count", {8}}}, ""},
        {"qwen2vl", {{"rope.dimension_sections", {8, 8, 8, 0}}}, "rope.dimension_sections"},
        {"qwen2vl", {{"rope.dimension_sections", {4, 2, 2, 0}}}, ""},
        {"starcoder",
         {{"attention.head_count", {8}}, {"attention.key_length", {16}}, {"attention.value_length", {16}}},
         "attention.head_count"},
        {"qwen3",
         {{"attention.head_count", {8}}, {"attention.key_length", {16}}, {"attention.value_length", {16}}},
         ""},
        {"deepseek2", latent({"attention.head_count_kv", {2}}), "attention.head_count_kv"},
        {"deepseek4", {{"hyper_connection.sinkhorn_iterations", {0}}}, "hyper_connection.sinkhorn_iterations"},
        {"glm5-next", {{"attention.indexer.kpool", {3}}, {"attention.indexer.top_k", {8}}}, "attention.indexer.kpool"},
        {"glm5-next", {{"attention.indexer.kpool", {4}}, {"attention.indexer.top_k", {8}}}, ""},
        {"hunyuan-dense", {{"rope.dimension_count", {8}}}, "rope.dimension_count"},
        {"gpt-oss", {{"attention.sliding_window", {INT32_MAX}}}, "attention.sliding_window"},
        {"dots1", {{"expert_count", {4}}, {"expert_used_count", {2}}}, "expert_gating_func"},
        {"dots1", {{"expert_count", {4}}, {"expert_used_count", {2}}, {"expert_gating_func", {2}}}, ""},
        {"olmoe", {{"expert_count", {4}}, {"expert_used_count", {2}}}, ""},
        {"hrm_text", {{"hrm.layers_per_stack", {1}}, {"hrm.h_cycles", {1}}, {"hrm.l_cycles", {1}}}, ""},
        {"hrm_text", {{"hrm.layers_per_stack", {1}}, {"hrm.h_cycles", {2}}, {"hrm.l_cycles", {1}}}, "block_count"},
        {"hrm_text", {{"hrm.layers_per_stack", {1}}, {"hrm.h_cycles", {0}}, {"hrm.l_cycles", {1}}}, "hrm.h_cycles"},
        {"qwen3vl", {{"n_deepstack_layers", {3}}}, "n_deepstack_layers"},
        {"qwen3vl", {{"n_deepstack_layers", {2}}}, ""},
        {"olmoe", {{"expert_gating_func", {5}}}, "expert_gating_func"},
        {"olmoe", {{"expert_gating_func", {4}}}, ""},
        {"gemma3",
         {{"attention.sliding_window", {32}}, {"attention.sliding_window_pattern", {0, 0}}},
         "attention.sliding_window_pattern"},
        {"gemma3", {{"attention.sliding_window", {32}}, {"attention.sliding_window_pattern", {1, 0}}}, ""},
        {"llama", {{"attention.sliding_window", {32}}, {"attention.sliding_window_pattern", {0, 0}}}, ""},
        {"jamba", {{"ssm.inner_size", {100}}}, "ssm.inner_size"},
        {"jamba", {{"ssm.inner_size", {128}}}, ""},
        {"qwen3next",
         {{"ssm.inner_size", {100}}, {"ssm.state_size", {16}}, {"ssm.time_step_rank", {8}}, {"ssm.group_count", {4}}},
         "ssm.inner_size"},
        {"qwen3next",
         {{"ssm.inner_size", {128}}, {"ssm.state_size", {16}}, {"ssm.time_step_rank", {8}}, {"ssm.group_count", {3}}},
         "ssm.group_count"},
        {"qwen3next",
         {{"ssm.inner_size", {128}}, {"ssm.state_size", {16}}, {"ssm.time_step_rank", {8}}, {"ssm.group_count", {4}}},
         ""},
        {"plamo2", {{"ssm.group_count", {1}}}, "ssm.group_count"},
        {"deepseek4", {{"hyper_connection.count", {2}}}, "hyper_connection.count"},
        {"deepseek4", {{"hyper_connection.count", {4}}}, ""},
    };
    for (const Rule & rule : rules) {
        Gguf g = tiny_llama();
        as(g, rule.architecture);
        check::context = rule.architecture;
        for (const auto & [name, values] : rule.keys) {
            const std::string key = std::string(rule.architecture) + '.' + name;
            check::context += std::string(" ") + name;
            if (values.size() == 1) {
                g.set(key, static_cast<uint32_t>(values[0]));
            } else {
                g.set(key, builder::i32, values);
            }
        }
        const std::string name =
            *rule.refused != '\0' ? std::string("key ") + rule.architecture + '.' + rule.refused : "";
        CHECK_EQ(refusal(g), name.empty() ? "accepted" : name);
    }
}

// What has been seen to end the process in the loader, at the first text and in the first computation.
void kill_classes() {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const auto type = [](const char * tensor, uint32_t t) { return [=](Gguf & g) { g.tensor(tensor).type = t; }; };
    const auto set = [](const char * key, auto value) { return [=](Gguf & g) { g.set(key, value); }; };
    const char *norm = "blk.1.attn_norm.weight", *weight = "blk.0.ffn_up.weight", *embd = "token_embd.weight";
    const std::string t_norm = "tensor blk.1.attn_norm.weight", t_weight = "tensor blk.0.ffn_up.weight";
    const std::string t_embd = "tensor token_embd.weight", eps = "llama.attention.layer_norm_rms_epsilon";
    expect(
        {
            {"no layers", "key llama.block_count", set("llama.block_count", 0u)},
            {"no word of heads", "key llama.attention.head_count",
             [](Gguf & g) { g.erase("llama.attention.head_count"); }},
            {"513 layers", "key llama.block_count", set("llama.block_count", 513u)},
            {"more prediction layers than layers", "key llama.nextn_predict_layers",
             set("llama.nextn_predict_layers", 3u)},
            {"1025 experts", "key llama.expert_count", set("llama.expert_count", 1025u)},
            {"more experts used than there are", "key llama.expert_used_count",
             [](Gguf & g) {
                 g.set("llama.expert_count", 4u);
                 g.set("llama.expert_used_count", 5u);
             }},
            {"experts used, but none there", "key llama.expert_used_count", set("llama.expert_used_count", 2u)},
            {"experts, but none used", "key llama.expert_used_count", set("llama.expert_count", 4u)},
            {"as many expert groups as experts", "key llama.expert_group_count",
             [](Gguf & g) {
                 g.set("llama.expert_count", 4u);
                 g.set("llama.expert_used_count", 2u);
                 g.set("llama.expert_group_count", 4u);
             }},
            {"expert groups of unequal size", "key llama.expert_group_count",
             [](Gguf & g) {
                 g.set("llama.expert_count", 5u);
                 g.set("llama.expert_used_count", 2u);
                 g.set("llama.expert_group_count", 2u);
                 g.set("llama.expert_group_used_count", 1u);
             }},
            {"no expert group used", "key llama.expert_group_used_count",
             [](Gguf & g) {
                 g.set("llama.expert_count", 4u);
                 g.set("llama.expert_used_count", 2u);
                 g.set("llama.expert_group_count", 2u);
             }},
            {"unknown rope scaling", "key llama.rope.scaling.type", set("llama.rope.scaling.type", "cubic")},
            {"integer embedding", t_embd, type(embd, I32)},
            {"eps negative", "key " + eps, set(eps.c_str(), -1e-5f)},
            {"a width that is not computed", "key llama.embedding_length_out",
             set("llama.embedding_length_out", 4096u)},
            {"pooling of no kind", "key llama.pooling_type", set("llama.pooling_type", 5u)},
            {"eps NaN", "key " + eps, set(eps.c_str(), nan)},
            {"norm F16", t_norm, type(norm, F16)},
            {"norm Q8_0", t_norm, type(norm, Q8_0)},
            {"norm I8", t_norm, type(norm, I8)},
            {"norm I32", t_norm, type(norm, I32)},
            {"embedding F64", t_embd, type(embd, F64)},
            {"embedding I8", t_embd, type(embd, I8)},
            {"weight I8", t_weight, type(weight, I8)},
            {"weight I16", t_weight, type(weight, I16)},
            {"weight I32", t_weight, type(weight, I32)},
            {"weight F64", t_weight, type(weight, F64)},
            {"unknown pooling", "key llama.pooling_type", set("llama.pooling_type", 5u)},
        },
        tiny_llama());

    const std::string key = "key " + tokens_key;
    expect(
        {
            {"a token twice", key, [](Gguf & g) { g.set(tokens_key, builder::string, Strings{"a", "b", "ab", "a"}); }},
            {"an empty token and its replacement", key,
             [](Gguf & g) { g.set(tokens_key, builder::string, Strings{"a", "", "[EMPTY_1]", "b"}); }},
            {"twice for a reader of C strings", key,
             [](Gguf & g) { g.set(tokens_key, builder::string, Strings{"a", std::string("a\0b", 3), "b", "c"}); }},
        },
        bpe());
    expect(
        {
            {"WPM with a byte token", "key " + types_key,
             [](Gguf & g) {
                 g.set(tokens_key, builder::string, Strings{"[PAD]", "[UNK]", "[CLS]", "[SEP]", "<0x0A>"});
                 g.set(types_key, builder::i32, std::vector<int32_t>{3, 3, 3, 3, 6});
             }},
        },
        wpm());
    expect(
        {
            {"SPM without byte tokens", key, [](Gguf & g) { g = with_tokens("llama", {"<unk>", "<s>", "</s>", "a"}); }},
            {"SPM without the byte FF", key,
             [](Gguf & g) {
                 Strings tokens = builder::byte_tokens();
                 tokens.back() = "x";
                 g = with_tokens("llama", tokens);
             }},
            {"RWKV with a first byte that is no token: endless", key,
             [](Gguf & g) { g = with_tokens("rwkv", {"a", "\\x62c"}); }},
            {"the same by an escape", key, [](Gguf & g) { g = with_tokens("rwkv", {"a", "\\nb"}); }},
            {"a byte token of no form", "key " + types_key,
             [](Gguf & g) {
                 Strings tokens = builder::byte_tokens();
                 tokens.push_back("<0");
                 g = with_tokens("llama", tokens);
                 g.set(types_key, builder::i32, std::vector<int32_t>(257, 6));
             }},
        },
        tiny_llama());
    expect(
        {
            {"BOS to be added, but there is none", "key tokenizer.ggml.bos_token_id",
             [](Gguf & g) {
                 g.erase("tokenizer.ggml.bos_token_id");
                 g.set("tokenizer.ggml.add_bos_token", true);
             }},
            {"EOS to be added, but there is none", "key tokenizer.ggml.eos_token_id",
             [](Gguf & g) {
                 g.erase("tokenizer.ggml.eos_token_id");
                 g.set("tokenizer.ggml.add_eos_token", true);
             }},
        },
        bpe());
}

void container() {
    const auto bytes = [](uint64_t n) { return std::string(n, 'x'); };
    expect(
        {
            {"version 1", "header version", [](Gguf & g) { g.version = 1; }},
            {"version 4", "header version", [](Gguf & g) { g.version = 4; }},
            {"other byte order", "header version", [](Gguf & g) { g.version = 0x03000000; }},
            {"too many tensors", "header n_tensors", [](Gguf & g) { g.n_tensors_shift = 1 << 20; }},
            {"a negative number of tensors", "header n_tensors", [](Gguf & g) { g.n_tensors_shift = -100; }},
            {"too many keys", "header n_kv", [](Gguf & g) { g.n_kv_shift = INT64_MAX; }},
            {"a key without a name", "key #0", [](Gguf & g) { g.keys[0].name = ""; }},
            {"a key twice", "key general.name", [](Gguf & g) { g.keys.push_back(g.key("general.name")); }},
            {"a long key", "key #0", [&](Gguf & g) { g.keys[0].name = bytes(65537); }},
            {"an unknown value type", "key general.name", [](Gguf & g) { g.key("general.name").type = 13; }},
            {"an array of arrays", "key x",
             [](Gguf & g) { g.put("x", builder::array, bytes_of(uint32_t(9)) + bytes_of(uint64_t(1))); }},
            {"an array of 2^24 + 1", "key x: an array of 16777217",
             [](Gguf & g) { g.put("x", builder::array, bytes_of(uint32_t(0)) + bytes_of(uint64_t((1 << 24) + 1))); }},
            {"an array longer than the file", "key x",
             [](Gguf & g) { g.put("x", builder::array, bytes_of(uint32_t(10)) + bytes_of(uint64_t(1 << 24))); }},
            {"a string longer than the file", "key x",
             [](Gguf & g) { g.put("x", builder::string, bytes_of(uint64_t(1) << 23)); }},
            {"a string of 2^63", "key x", [](Gguf & g) { g.put("x", builder::string, bytes_of(uint64_t(1) << 63)); }},
            {"a chat template of 2 MB", "key tokenizer.chat_template",
             [&](Gguf & g) { g.put("tokenizer.chat_template", builder::string, bytes_of(bytes(2 << 20))); }},
            {"a million empty strings", "key x", [](Gguf & g) { g.set("x", builder::string, Strings(1000000)); }},
            {"alignment 0", "key general.alignment", [](Gguf & g) { g.set("general.alignment", 0u); }},
            {"alignment 24", "key general.alignment", [](Gguf & g) { g.set("general.alignment", 24u); }},
            {"alignment 2^21", "key general.alignment", [](Gguf & g) { g.set("general.alignment", 1u << 21); }},
            {"alignment as u64", "key general.alignment",
             [](Gguf & g) { g.put("general.alignment", builder::u64, bytes_of(uint64_t(32))); }},
            {"a tensor twice", "tensor output_norm.weight: there twice",
             [](Gguf & g) { g.tensors.push_back(g.tensors[1]); }},
            {"a long tensor name", "tensor #1", [&](Gguf & g) { g.tensors[1].name = bytes(64); }},
            {"five dimensions", "tensor output_norm.weight", [](Gguf & g) { g.tensors[1].ne = {64, 1, 1, 1, 1}; }},
            {"a dimension of 0", "tensor output_norm.weight", [](Gguf & g) { g.tensors[1].ne = {64, 0}; }},
            {"2^64 elements", "tensor output_norm.weight",
             [](Gguf & g) { g.tensors[1].ne = {uint64_t(1) << 32, uint64_t(1) << 32}; }},
            {"bytes past 2^64", "tensor output_norm.weight", [](Gguf & g) { g.tensors[1].ne = {uint64_t(1) << 62}; }},
            {"a removed tensor type", "tensor output_norm.weight", [](Gguf & g) { g.tensors[1].type = 4; }},
            {"a tensor type to come", "tensor output_norm.weight", [](Gguf & g) { g.tensors[1].type = 43; }},
            {"a row of half a block", "tensor token_embd.weight", [](Gguf & g) { g.tensors[0].ne = {48, 2}; }},
            {"a gap before a tensor", "tensor output_norm.weight", [](Gguf & g) { g.tensors[1].shift = 32; }},
            {"tensors that overlap", "tensor output_norm.weight", [](Gguf & g) { g.tensors[1].shift = -32; }},
            {"a tensor cut short", "tensor blk.1.ffn_down.weight", [](Gguf & g) { g.end_shift = -1; }},
        },
        tiny_llama());

    check::context = "what is no GGUF";
    for (const std::string & text : {std::string(), std::string("GGUF"), std::string(100, '\0'), std::string("GGML")}) {
        CHECK_EQ(refusal(temp.write("junk", text)), std::string("header magic"));
    }
    CHECK_EQ(refusal(temp.path() + "/missing.gguf"), std::string("not_found"));
    CHECK_EQ(refusal(temp.path()), std::string("not_found"));

    const std::string whole = tiny_llama().header();
    for (size_t n = 0; n < whole.size(); ++n) {
        check::context = "header cut at byte " + std::to_string(n);
        CHECK(refusal(temp.write("cut.gguf", whole.substr(0, n))) != "accepted");
    }
}

void meaning() {
    const auto set = [](const char * key, auto value) { return [=](Gguf & g) { g.set(key, value); }; };
    const auto erase = [](const char * key) { return [=](Gguf & g) { g.erase(key); }; };
    const auto heads = [](const char * key, std::vector<int32_t> values) {
        return [=](Gguf & g) { g.set(key, builder::i32, values); };
    };
    const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    const std::string count = "key llama.attention.head_count", kv = "key llama.attention.head_count_kv";
    expect(
        {
            {"no architecture", "key general.architecture: missing", erase("general.architecture")},
            {"unknown architecture", "key general.architecture", set("general.architecture", "llama9")},
            {"a projector", "key general.architecture", set("general.architecture", "clip")},
            {"an adapter as a model", "key general.type", set("general.type", "adapter")},
            {"no layer count", "key llama.block_count: missing", erase("llama.block_count")},
            {"layers as u64", "key llama.block_count",
             [](Gguf & g) { g.put("llama.block_count", builder::u64, bytes_of(uint64_t(2))); }},
            {"every layer a prediction layer", "key llama.nextn_predict_layers", set("llama.nextn_predict_layers", 2u)},
            {"no context", "key llama.context_length", set("llama.context_length", 0u)},
            {"a context of 2^24 + 1", "key llama.context_length", set("llama.context_length", (1u << 24) + 1)},
            {"no width", "key llama.embedding_length", set("llama.embedding_length", 0u)},
            {"no heads", count, set("llama.attention.head_count", 0u)},
            {"heads that do not divide the width", count, set("llama.attention.head_count", 5u)},
            {"more heads than the width", count, set("llama.attention.head_count", 128u)},
            {"KV heads that do not divide the heads", kv, set("llama.attention.head_count_kv", 3u)},
            {"heads for one layer of two", count, heads("llama.attention.head_count", {4})},
            {"head counts that differ, where the architecture has one", kv,
             heads("llama.attention.head_count_kv", {2, 4})},
            {"a negative head count", kv + ": -2 for layer 1", heads("llama.attention.head_count_kv", {2, -2})},
            {"heads as an array of floats", kv,
             [](Gguf & g) { g.set("llama.attention.head_count_kv", builder::f32, std::vector<float>{2, 2}); }},
            {"rotation wider than a head", "key llama.rope.dimension_count", set("llama.rope.dimension_count", 18u)},
            {"odd rotation", "key llama.rope.dimension_count", set("llama.rope.dimension_count", 15u)},
            {"freq_base 0", "key llama.rope.freq_base", set("llama.rope.freq_base", 0.0f)},
            {"freq_base infinite", "key llama.rope.freq_base", set("llama.rope.freq_base", inf)},
            {"scaling factor negative", "key llama.rope.scaling.factor", set("llama.rope.scaling.factor", -1.0f)},
            {"any number NaN", "key llama.logit_scale", set("llama.logit_scale", nan)},
            {"no tokenizer", "key tokenizer.ggml.model", erase("tokenizer.ggml.model")},
            {"unknown tokenizer", "key tokenizer.ggml.model", set("tokenizer.ggml.model", "tiktoken")},
            {"no tokens", "key " + tokens_key, erase(tokens_key.c_str())},
            {"tokens as numbers", "key " + tokens_key, heads(tokens_key.c_str(), {1, 2})},
            {"a token of 1025 bytes", "key " + tokens_key,
             [](Gguf & g) {
                 Strings tokens = builder::byte_tokens();
                 tokens.push_back(std::string(1025, 'x'));
                 g = with_tokens("llama", tokens);
             }},
            {"too few scores", "key tokenizer.ggml.scores",
             [](Gguf & g) { g.set("tokenizer.ggml.scores", builder::f32, std::vector<float>(10)); }},
            {"a score NaN", "key tokenizer.ggml.scores",
             [&](Gguf & g) { g.set("tokenizer.ggml.scores", builder::f32, std::vector<float>(263, nan)); }},
            {"too few types", "key " + types_key + ": of 2", heads(types_key.c_str(), {1, 1})},
            {"types as floats", "key " + types_key,
             [](Gguf & g) { g.set(types_key, builder::f32, std::vector<float>(263, 1)); }},
            {"an unknown token type", "key " + types_key,
             [](Gguf & g) { g.set(types_key, builder::i32, std::vector<int32_t>(263, 7)); }},
            {"BOS out of range", "key tokenizer.ggml.bos_token_id", set("tokenizer.ggml.bos_token_id", 263u)},
            {"EOS out of range", "key tokenizer.ggml.eos_token_id", set("tokenizer.ggml.eos_token_id", 1u << 31)},
            {"EOT out of range", "key tokenizer.ggml.eot_token_id", set("tokenizer.ggml.eot_token_id", 263u)},
            {"scratch formats as weights", "tensor blk.0.ffn_up.weight",
             [](Gguf & g) {
                 g.tensor("blk.0.ffn_up.weight").type = Q8_1;
                 g.end_shift = 1 << 20;
                 g.tensors.resize(10);
             }},
            {"bias F16", "tensor blk.0.attn_q.bias",
             [](Gguf & g) { g.tensors.push_back({"blk.0.attn_q.bias", {64}, F16}); }},
            {"rope factors F16", "tensor rope_freqs.weight",
             [](Gguf & g) { g.tensors.push_back({"rope_freqs.weight", {8}, F16}); }},
            {"index table F32", "tensor d2t", [](Gguf & g) { g.tensors.push_back({"d2t", {8}, F32}); }},
            {"a split, but the file is named otherwise", "file name",
             [](Gguf & g) {
                 g.put("split.count", builder::u16, bytes_of(uint16_t(2)));
                 g.put("split.no", builder::u16, bytes_of(uint16_t(0)));
             }},
        },
        tiny_llama());
    expect(
        {
            {"no merges", "key tokenizer.ggml.merges", erase("tokenizer.ggml.merges")},
            {"a merge of one token", "key tokenizer.ggml.merges",
             [](Gguf & g) { g.set("tokenizer.ggml.merges", builder::string, Strings{"a b", "ab"}); }},
        },
        bpe());
    expect(
        {
            {"a million dummy tokens and more", "key llama.vocab_size",
             [](Gguf & g) {
                 g.set("tokenizer.ggml.model", "none");
                 g.set("llama.vocab_size", (1u << 20) + 1);
             }},
        },
        tiny_llama());
    expect(
        {
            {"WPM without a separator", "key tokenizer.ggml.seperator_token_id",
             erase("tokenizer.ggml.seperator_token_id")},
        },
        wpm());

    check::context = "duplicates are listed";
    Gguf g = bpe();
    g.set(tokens_key, builder::string, Strings{"x", "y", "x", "y", "x"});
    try {
        check_gguf(temp.write("model.gguf", g.file()));
        CHECK(false);
    } catch (const Error & e) {
        std::vector<std::string> ids;
        std::istringstream list(e.details.at("duplicates"));
        for (std::string id; std::getline(list >> std::ws, id, ',');)
            ids.push_back(id);
        std::sort(ids.begin(), ids.end());
        CHECK_EQ(ids, (Strings{"2", "3", "4"}));
    }
}

void accepted() {
    const auto accept = [](const char * name, const Gguf & base, const Change & change) {
        check::context = name;
        Gguf gguf = base;
        change(gguf);
        CHECK_EQ(refusal(gguf), std::string("accepted"));
    };
    const Gguf tiny = tiny_llama();
    accept("version 2", tiny, [](Gguf & g) { g.version = 2; });
    accept("alignment 64", tiny, [](Gguf & g) {
        g.set("general.alignment", 64u);
        g.alignment = 64;
    });
    accept("what llama.cpp writes for a key that is not used", tiny, [](Gguf & g) {
        g.set("llama.attention.layer_norm_epsilon", 0.0f);
        g.set("llama.attention.compress_rope_freq_base", 0.0f);
        g.set("llama.pooling_type", UINT32_MAX);
    });
    accept("the width that is computed", tiny, [](Gguf & g) {
        for (const builder::Key & k : g.keys) {
            if (k.name == "llama.embedding_length") {
                g.keys.push_back({"llama.embedding_length_out", k.type, k.payload});
                break;
            }
        }
    });
    accept("bytes after the last tensor", tiny, [](Gguf & g) { g.end_shift = 100; });
    accept("no tensors: a vocabulary", tiny, [](Gguf & g) { g.tensors.clear(); });
    accept("a vocabulary without shape", tiny, [](Gguf & g) {
        g.tensors.clear();
        for (const char * k : {"block_count", "context_length", "embedding_length"})
            g.erase(std::string("llama.") + k);
    });
    accept("0 KV heads on a recurrent layer", tiny, [&](Gguf & g) {
        as(g, "lfm2");
        g.set("lfm2.attention.head_count_kv", builder::u32, std::vector<uint32_t>{0, 2});
    });
    accept("0 heads on a layer without attention", tiny, [&](Gguf & g) {
        as(g, "deci");
        g.set("deci.attention.head_count", builder::i32, std::vector<int32_t>{4, 0});
        g.set("deci.attention.head_count_kv", builder::i32, std::vector<int32_t>{2, 0});
    });
    accept("explicit head size", tiny, [](Gguf & g) {
        g.set("llama.attention.head_count", 6u);
        g.set("llama.attention.key_length", 16u);
        g.set("llama.attention.value_length", 16u);
    });
    accept("experts", tiny, [](Gguf & g) {
        g.set("llama.expert_count", 8u);
        g.set("llama.expert_used_count", 2u);
        g.set("llama.expert_group_count", 4u);
        g.set("llama.expert_group_used_count", 2u);
    });
    accept("a prediction layer", tiny, [](Gguf & g) { g.set("llama.nextn_predict_layers", 1u); });
    accept("scaling factor 0 is the default", tiny, [](Gguf & g) { g.set("llama.rope.scaling.factor", 0.0f); });
    accept("an infinite clamp", tiny,
           [](Gguf & g) { g.set("llama.attention.clamp_kqv", std::numeric_limits<float>::infinity()); });
    for (const char * type : {"none", "linear", "yarn", "longrope"}) {
        accept(type, tiny, [=](Gguf & g) { g.set("llama.rope.scaling.type", type); });
    }
    for (const uint32_t type : {F32, F16, Q4_0, Q8_0, BF16}) {
        accept("weight type", tiny, [=](Gguf & g) { g.tensor("blk.0.attn_q.weight").type = type; });
    }
    accept("index tables", tiny, [](Gguf & g) {
        g.tensors.push_back({"d2t", {8}, I64});
        g.tensors.push_back({"blk.0.ffn_gate_tid2eid.weight", {8, 8}, I32});
    });
    accept("attention-free architectures say 0 heads", tiny, [&](Gguf & g) {
        as(g, "mamba");
        g.set("mamba.attention.head_count", 0u);
    });
    accept("a padding id out of range, as released files have", tiny,
           [](Gguf & g) { g.set("tokenizer.ggml.padding_token_id", 263u); });
    accept("an id of -1 for none", tiny, [](Gguf & g) { g.set("tokenizer.ggml.bos_token_id", UINT32_MAX); });
    accept("bytes as one-byte tokens", tiny, [](Gguf & g) {
        Strings tokens;
        for (int i = 1; i < 256; ++i)
            tokens.push_back(std::string(1, static_cast<char>(i)));
        tokens.push_back("<0x00>");
        g = with_tokens("llama", tokens);
    });
    accept("RWKV", tiny, [](Gguf & g) { g = with_tokens("rwkv", {"a", "ab", "\\x62", "bc", "\\n", "\\n\\n", "\\"}); });
    accept("integer scores", tiny,
           [](Gguf & g) { g.set("tokenizer.ggml.scores", builder::i32, std::vector<int32_t>(263, -5)); });
    accept("byte pairs", bpe(), [](Gguf &) {});
    accept("byte pairs without merges, as one release has", bpe(), [](Gguf & g) {
        g.erase("tokenizer.ggml.merges");
        g.set("tokenizer.ggml.pre", "kimi-k2");
    });
    accept("one empty token", bpe(), [](Gguf & g) { g.set(tokens_key, builder::string, Strings{"a", "b", "", "c"}); });
    accept("no vocabulary", tiny, [](Gguf & g) {
        g.erase(tokens_key);
        g.set("tokenizer.ggml.model", "no_vocab");
        g.set("llama.vocab_size", 99u);
    });
}

void summary() {
    check::context = "summary";
    Gguf g = tiny_llama();
    g.put("general.name", builder::string, bytes_of(std::string("n\xFF\xE2\x82") + std::string(300, 'x')));
    g.set("general.file_type", 15u);
    const std::string bytes = g.file();
    const GgufSummary s = check_gguf(temp.write("model.gguf", bytes));
    CHECK_EQ(s.n_tensors, g.tensors.size());
    CHECK_EQ(s.file_bytes, bytes.size());
    CHECK_EQ(s.architecture, std::string("llama"));
    CHECK_EQ(s.type, std::string("model"));
    CHECK_EQ(s.name, "n???" + std::string(252, 'x'));
    CHECK_EQ(s.quantization, std::string("Q4_K_M"));
    CHECK_EQ(s.chat_template, std::string("{{ messages }}"));
    CHECK(!s.vocab_only);
    CHECK_EQ(s.n_layer, 2);
    CHECK_EQ(s.n_embd, 64);
    CHECK_EQ(s.n_head, 4);
    CHECK_EQ(s.n_head_kv, 2);
    CHECK_EQ(s.n_ctx_train, 128);
    CHECK_EQ(s.n_vocab, 263);
    CHECK_EQ(s.n_splits, 1);
    CHECK_EQ(s.cache_bytes_f16, 2u * 2 * 2 * 16 * 2);        // layers, K and V, KV heads, head size, bytes
    CHECK_EQ(s.cache_bytes_q8_0, 2u * 2 * 34);               // one block of 32 holds a layer's K
    CHECK_EQ(s.n_params, 64u * 263 + 64 + 2 * (64 + 64 * 64 + 2 * 64 * 32 + 64 * 64 + 64 + 3 * 64 * 96));
    CHECK_EQ(s.metadata.at("llama.block_count"), std::string("2"));
    CHECK_EQ(s.metadata.at("llama.attention.layer_norm_rms_epsilon"), std::string("9.99999975e-06"));
    CHECK_EQ(s.metadata.count(tokens_key), 0u);

    g.erase("general.file_type");
    CHECK_EQ(check_gguf(temp.write("model.gguf", g.file())).quantization, std::string("BF16"));   // most bytes
    g.tensors.clear();
    CHECK(check_gguf(temp.write("model.gguf", g.file())).vocab_only);
}

// Where the bytes of a model go when its layers are dealt out to GPUs.
void layers() {
    const GgufSummary s = check_gguf(temp.write("model.gguf", tiny_llama().file()));
    const GgufSummary::Layer & first = s.layers.at(0);
    CHECK_EQ(s.layers.size(), size_t{2});
    CHECK_EQ(first.weights_bytes, s.layers[1].weights_bytes);
    CHECK_EQ(first.cache_bytes_f16 * 2, s.cache_bytes_f16);
    CHECK_EQ(first.cache_bytes_q8_0 * 2, s.cache_bytes_q8_0);
    // The tiny model takes its token table for its output, so that a GPU holds it over again.
    CHECK_EQ(s.input_bytes + first.weights_bytes * 2 + s.output_bytes, s.tensor_bytes + s.input_bytes);

    Gguf untied = tiny_llama();
    untied.tensors.push_back({"output.weight", {64, 263}, BF16});
    const GgufSummary own = check_gguf(temp.write("model.gguf", untied.file()));
    CHECK_EQ(own.input_bytes + own.layers[0].weights_bytes * 2 + own.output_bytes, own.tensor_bytes);
}

void adapters() {
    Gguf base;
    base.set("general.architecture", "llama");
    base.set("general.type", "adapter");
    base.set("adapter.type", "lora");
    base.set("adapter.lora.alpha", 16.0f);
    base.tensors = {{"blk.0.attn_q.weight.lora_a", {64, 8}, F32}, {"blk.0.attn_q.weight.lora_b", {8, 64}, F16}};
    expect(
        {
            {"a model as an adapter", "key general.type", [](Gguf & g) { g.set("general.type", "model"); }},
            {"another kind", "key adapter.type", [](Gguf & g) { g.set("adapter.type", "dora"); }},
            {"kind not text", "key adapter.type", [](Gguf & g) { g.set("adapter.type", 1u); }},
            {"alpha not a float", "key adapter.lora.alpha", [](Gguf & g) { g.set("adapter.lora.alpha", 16u); }},
            {"alpha NaN", "key adapter.lora.alpha", [](Gguf & g) { g.set("adapter.lora.alpha", std::nanf("")); }},
            {"integer factor", "tensor blk.0.attn_q.weight.lora_a", [](Gguf & g) { g.tensors[0].type = I32; }},
        },
        base, GgufRole::adapter);
}

void splits() {
    const auto number = [](Gguf & g, const char * key, int n) { g.put(key, builder::u16, bytes_of(uint16_t(n))); };
    const auto write = [&](const Change & change_first, const Change & change_second) {
        Gguf first = tiny_llama(), second;
        second.tensors.assign(first.tensors.begin() + 10, first.tensors.end());
        first.tensors.resize(10);
        number(first, "split.no", 0);
        number(first, "split.count", 2);
        first.put("split.tensors.count", builder::i32, bytes_of(int32_t(20)));
        number(second, "split.no", 1);
        number(second, "split.count", 2);
        change_first(first);
        change_second(second);
        temp.write("m-00002-of-00002.gguf", second.file());
        return temp.write("m-00001-of-00002.gguf", first.file());
    };
    const Change same = [](Gguf &) {};
    check::context = "two splits";
    const GgufSummary s = check_gguf(write(same, same));
    const GgufSummary one = check_gguf(temp.write("model.gguf", tiny_llama().file()));
    CHECK_EQ(s.n_splits, 2);
    CHECK_EQ(s.n_tensors, one.n_tensors);
    CHECK_EQ(s.n_params, one.n_params);
    CHECK_EQ(s.tensor_bytes, one.tensor_bytes);
    CHECK(s.file_bytes > one.file_bytes);

    const std::vector<std::pair<Case, Change>> cases = {
        {{"later split.no of a wrong type", "key split.no", same}, [](Gguf & g) { g.set("split.no", 1u); }},
        {{"later split.no missing", "key split.no", same}, [](Gguf & g) { g.erase("split.no"); }},
        {{"later split.no out of order", "key split.no", same}, [&](Gguf & g) { number(g, "split.no", 0); }},
        {{"a tensor in both", "tensor output_norm.weight", same},
         [](Gguf & g) { g.tensors.push_back({"output_norm.weight", {64}, F32}); }},
        {{"a bad tensor in the second", "tensor blk.1.ffn_norm.weight", same},
         [](Gguf & g) { g.tensor("blk.1.ffn_norm.weight").type = F16; }},
        {{"a tensor too few", "key split.tensors.count", same}, [](Gguf & g) { g.tensors.pop_back(); }},
        {{"split.count of a wrong type", "key split.count", [](Gguf & g) { g.set("split.count", 2u); }}, same},
        {{"1001 splits", "key split.count", [&](Gguf & g) { number(g, "split.count", 1001); }}, same},
        {{"opened by a later file", "key split.no", [&](Gguf & g) { number(g, "split.no", 1); }}, same},
        {{"the count of another set", "file name", [&](Gguf & g) { number(g, "split.count", 3); }}, same},
    };
    for (const auto & [c, second] : cases) {
        check::context = c.name;
        CHECK_EQ(refusal(write(c.change, second)), c.names);
    }
    check::context = "a split missing";
    const std::string first = write(same, same);
    std::filesystem::remove(temp.path() + "/m-00002-of-00002.gguf");
    CHECK_EQ(refusal(first), std::string("file -00002-of-00002.gguf"));
}

// Any change to a good file ends in a summary or in a refusal that says what is wrong; never in anything else.
void mutations() {
    const Gguf bases[] = {tiny_llama(), bpe(), wpm()};
    const uint64_t numbers[] = {0,          1,
                                2,          3,
                                5,          127,
                                128,        255,
                                256,        511,
                                513,        65535,
                                65536,      1u << 24,
                                INT32_MAX,  UINT32_MAX,
                                INT64_MAX,  uint64_t(INT64_MAX) + 1,
                                UINT64_MAX, UINT64_MAX - 31,
                                0x7fc00000, 0xff800000,
                                0x80000000};
    size_t n_accepted = 0, n_refused = 0;
    const uint32_t n = 8000;
    for (uint32_t seed = 0; seed < n; ++seed) {
        check::context = "mutation " + std::to_string(seed);
        std::mt19937_64 rng(seed);
        Gguf g = bases[rng() % std::size(bases)];
        const auto number = [&] { return rng() % 4 == 0 ? rng() : numbers[rng() % std::size(numbers)]; };
        for (uint64_t i = 1 + rng() % 2; i > 0; --i) {
            builder::Key & key = g.keys[rng() % g.keys.size()];
            builder::Tensor & tensor = g.tensors[rng() % g.tensors.size()];
            switch (rng() % 12) {
            case 0:
            case 1:
            case 2: {   // overwrite a number somewhere in the value
                const std::string value = bytes_of(number());
                const size_t width = size_t(1) << rng() % 4;
                if (key.payload.size() >= width) {
                    key.payload.replace(rng() % (key.payload.size() - width + 1), width, value.substr(0, width));
                }
                break;
            }
            case 3:
                key.type = static_cast<uint32_t>(rng() % 14);
                break;
            case 4:
                g.keys.erase(g.keys.begin() + static_cast<ptrdiff_t>(rng() % g.keys.size()));
                break;
            case 5:
                key.payload.resize(rng() % (key.payload.size() + 16));
                break;
            case 6:
                key.name = g.keys[rng() % g.keys.size()].name + (rng() % 2 == 0 ? "" : "x");
                break;
            case 7:
                tensor.type = static_cast<uint32_t>(rng() % 45);
                break;
            case 8:
                tensor.ne.resize(rng() % 6, 1);
                if (!tensor.ne.empty())
                    tensor.ne[rng() % tensor.ne.size()] = number();
                break;
            case 9:
                tensor.shift = static_cast<int64_t>(number());
                break;
            case 10:
                (rng() % 2 == 0 ? g.n_kv_shift : g.n_tensors_shift) = static_cast<int64_t>(rng() % 7) - 3;
                break;
            default:
                tensor.name = std::string(rng() % 70, static_cast<char>(rng() % 256));
                break;
            }
        }
        std::string bytes = g.file();
        if (rng() % 3 == 0) {   // and bytes of the header at random
            for (uint64_t i = rng() % 4; i > 0 && !bytes.empty(); --i) {
                bytes[rng() % std::min(bytes.size(), g.header().size())] = static_cast<char>(rng());
            }
        }
        if (rng() % 5 == 0) {
            bytes.resize(rng() % (bytes.size() + 1));
        }
        try {
            const GgufSummary s = check_gguf(temp.write("mutant.gguf", bytes));
            CHECK(s.n_vocab >= 0 && s.n_layer >= 0 && s.n_layer <= 512 && s.tensor_bytes <= bytes.size());
            ++n_accepted;
        } catch (const Error & e) {
            CHECK_EQ(e.code, std::string("invalid_model"));
            for (const char c : std::string(e.what())) {
                CHECK(c >= 0x20 && c < 0x7f);
            }
            CHECK(std::strlen(e.what()) < 600);
            ++n_refused;
        }
    }
    check::context = "the mutations make both kinds";
    CHECK(n_accepted > n / 50 && n_refused > n / 2);
}

int accept_files(int n, char ** paths) {
    for (int i = 0; i < n; ++i) {
        check::context = paths[i];
        CHECK_EQ(refusal(paths[i]), std::string("accepted"));
    }
    return check::result("gguf_check --accept");
}

}  // namespace

int main(int argc, char ** argv) {
    if (argc > 2 && std::strcmp(argv[1], "--accept") == 0) {
        return accept_files(argc - 2, argv + 2);
    }
    kill_classes();
    architecture_rules();
    container();
    meaning();
    accepted();
    summary();
    layers();
    adapters();
    splits();
    mutations();
    return check::result("gguf_check");
}
