// GGUF check: what the values mean. Each rule stands for a way in which the loader, the tokenizer or the first
// computation would otherwise end the process or go wrong without a word; the container's own rules are in file.cpp.
#include "gguf/check.h"

#include "gguf/facts.h"
#include "gguf/file.h"
#include "gguf/splits.h"
#include "gguf/vocab.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <unordered_set>

namespace pgl {

namespace {

using Type = GgufFile::Type;
using Value = GgufFile::Value;

class Check {
  public:
    Check(const GgufFile & file, const std::string & path, GgufRole role) : file_(file), path_(path), role_(role) {}

    GgufSummary run() {
        general();
        if (role_ == GgufRole::adapter) {
            adapter();
        } else {
            shape();
            floats();
            out_.n_vocab = static_cast<int32_t>(check_vocab(file_, key("vocab_size")));
        }
        tensors(file_);
        splits();
        out_.vocab_only = out_.n_tensors == 0;
        out_.tied = names_.count("output.weight") == 0;
        if (out_.tied) {
            out_.output_bytes += table_bytes_;
        }
        if (role_ == GgufRole::model) {
            embedding();
            tasks();
        }
        return std::move(out_);
    }

  private:
    std::string key(std::string_view name) const { return out_.architecture + '.' + std::string(name); }

    // A u32 within its range. Absent: 0, or refused if required.
    uint32_t count(const std::string & name, uint64_t lo, uint64_t hi, bool required = false) const {
        const auto value = file_.u32(name);
        if (!value) {
            if (required) {
                refuse("key", name, "missing", range(lo, hi));
            }
            return 0;
        }
        if (*value < lo || *value > hi) {
            refuse("key", name, std::to_string(*value), range(lo, hi));
        }
        return *value;
    }

    // One value per layer, from a scalar or an array of exactly that length. Empty if absent.
    std::vector<uint32_t> per_layer(const std::string & name, uint32_t n_layer, uint32_t hi) const {
        const Value * value = file_.find(name);
        if (value == nullptr) {
            return {};
        }
        if (!value->is_array) {
            return std::vector<uint32_t>(n_layer, count(name, 0, hi));
        }
        if (value->n != n_layer) {
            refuse("key", name, "an array of " + std::to_string(value->n), std::to_string(n_layer) + ", one per layer");
        }
        std::vector<uint32_t> result;
        for (uint64_t i = 0; i < value->n; ++i) {
            int64_t x = 0;
            switch (value->type) {
            case Type::boolean:
                x = GgufFile::element<uint8_t>(*value, i) != 0;
                break;
            case Type::u32:
                x = GgufFile::element<uint32_t>(*value, i);
                break;
            case Type::i32:
                x = GgufFile::element<int32_t>(*value, i);
                break;
            default:
                refuse("key", name, std::string("an array of ") + GgufFile::type_name(value->type), "u32 or i32");
            }
            if (x < 0 || x > hi) {
                refuse("key", name, std::to_string(x) + " for layer " + std::to_string(i), range(0, hi));
            }
            result.push_back(static_cast<uint32_t>(x));
        }
        return result;
    }

    void general() {
        for (const Value & value : file_.values()) {
            if (!value.is_array) {
                out_.metadata.emplace(clean_utf8(value.key, 256), GgufFile::scalar_text(value));
            }
        }
        out_.alignment = file_.alignment();

        const auto architecture = file_.string("general.architecture");
        if (!architecture) {
            refuse("key", "general.architecture", "missing", "a known architecture");
        }
        const std::string type = clean_utf8(file_.string("general.type").value_or("model"), 256);
        const bool wanted =
            role_ == GgufRole::adapter ? type == "adapter" : type != "adapter" && type != "imatrix" && type != "mmproj";
        if (!wanted) {
            refuse("key", "general.type", type, role_ == GgufRole::adapter ? "adapter" : "model");
        }
        if (!facts::contains(facts::architectures, *architecture)) {
            refuse("key", "general.architecture", std::string(*architecture), "an architecture of this build");
        }
        out_.architecture = *architecture;
        out_.type = type;
        if (const auto name = file_.string("general.name")) {
            out_.name = clean_utf8(*name, 256);
        }
        if (const auto file_type = file_.u32("general.file_type")) {
            if (*file_type < std::size(facts::quantizations)) {
                out_.quantization = facts::quantizations[*file_type];
            }
        }
        out_.rerank_template = clean_utf8(file_.string("tokenizer.chat_template.rerank").value_or(""));
        out_.pre_tokenizer = clean_utf8(file_.string("tokenizer.ggml.pre").value_or(""), 256);
        if (const auto text = file_.string("tokenizer.chat_template")) {
            out_.chat_template = clean_utf8(*text);
        }
    }

    void adapter() {
        const auto kind = file_.string("adapter.type");
        if (!kind || *kind != "lora") {
            refuse("key", "adapter.type", kind ? std::string(*kind) : "missing", "lora");
        }
        const auto alpha = file_.f32("adapter.lora.alpha");
        if (alpha && !std::isfinite(*alpha)) {
            refuse("key", "adapter.lora.alpha", "not finite", "a finite number");
        }
        if (file_.find("adapter.alora.invocation_tokens") != nullptr) {
            refuse("key", "adapter.alora.invocation_tokens", "set: this adapter acts only behind these tokens",
                   "an ordinary adapter, which acts from the start");
        }
    }

    void shape() {
        const bool runs = !file_.tensors().empty() || file_.find("split.count") != nullptr;
        const std::string & architecture = out_.architecture;
        const uint32_t n_layer = count(key("block_count"), 1, 512, runs);
        // A drafter's layers are all prediction layers; any other model needs one that is not.
        const uint32_t most = architecture == "gemma4-assistant" ? n_layer : n_layer - 1;
        const uint32_t n_nextn = n_layer > 0 ? count(key("nextn_predict_layers"), 0, most) : 0;
        out_.n_layer = static_cast<int32_t>(n_nextn < n_layer ? n_layer - n_nextn : n_layer);
        out_.n_ctx_train = static_cast<int32_t>(count(key("context_length"), 1, 1u << 24, runs));
        const auto n_embd = count(key("embedding_length"), 1, 1u << 20, runs);
        out_.n_embd = static_cast<int32_t>(n_embd);
        out_.layers.resize(n_layer);
        out_.pooling = pooling("pooling_type");
        pooling("classifier.pooling_type");
        if (const auto scaling = file_.string(key("rope.scaling.type"))) {
            if (*scaling != "none" && *scaling != "linear" && *scaling != "yarn" && *scaling != "longrope") {
                refuse("key", key("rope.scaling.type"), std::string(*scaling), "none, linear, yarn, longrope");
            }
        }
        if (n_layer > 0 && n_embd > 0) {
            experts(n_layer);
            heads(n_layer, n_embd);
            windows(n_layer);
            recurrence(n_embd);
            repetition(n_layer);
            pooled_indexer();
            count(key("n_deepstack_layers"), 0, n_layer);
            for (const facts::OwnRange & own : facts::own_ranges) {
                if (own.architecture == out_.architecture) {
                    count(key(own.key), own.low, own.high);
                }
            }
        }
    }

    // llama.cpp itself writes its "unspecified", -1, where a model has none.
    int32_t pooling(std::string_view name) const {
        const auto value = file_.u32(key(name));
        return !value || *value == UINT32_MAX ? -1 : static_cast<int32_t>(count(key(name), 0, 4));
    }

    void experts(uint32_t n_layer) {
        uint32_t n_expert = count(key("expert_count"), 0, 1024);
        const bool by_name = n_expert > 0 && facts::contains(facts::gate_by_name, out_.architecture);
        count(key("expert_gating_func"), by_name ? 1 : 0, 4, by_name);
        const std::vector<uint32_t> used = per_layer(key("expert_used_count"), n_layer, 1024);
        uint32_t n_used = used.empty() ? 0 : *std::max_element(used.begin(), used.end());
        if ((out_.architecture == "hunyuan_vl" || out_.architecture == "hunyuan-dense") && n_expert <= 1) {
            n_expert = n_used = 0;   // the loader reads them so
        }
        if (n_used > n_expert || (n_expert > 0 && n_used == 0)) {
            refuse("key", key("expert_used_count"), std::to_string(n_used), range(n_expert > 0, n_expert));
        }
        const uint32_t n_groups = count(key("expert_group_count"), 0, n_expert > 0 ? n_expert - 1 : 0);
        if (n_groups > 1) {
            if (n_expert % n_groups != 0) {
                refuse("key", key("expert_group_count"), std::to_string(n_groups),
                       "a divisor of expert_count " + std::to_string(n_expert));
            }
            count(key("expert_group_used_count"), 1, n_groups - 1, true);
        }
    }

    void heads(uint32_t n_layer, uint32_t n_embd) {
        const std::string head_key = key("attention.head_count"), kv_key = key("attention.head_count_kv");
        constexpr uint32_t most = 65536;
        const std::vector<uint32_t> heads = per_layer(head_key, n_layer, most);
        if (heads.empty()) {
            if (!facts::contains(facts::headless, out_.architecture)) {
                refuse("key", head_key, "missing", range(1, most));
            }
            return;
        }
        if (!file_.find(head_key)->is_array && heads[0] == 0 && !facts::contains(facts::headless, out_.architecture)) {
            refuse("key", head_key, "0", range(1, most));
        }
        std::vector<uint32_t> kv = per_layer(kv_key, n_layer, most);
        if (kv.empty()) {
            kv = heads;
        }
        // The loader takes a 0 that is given for the length itself.
        const uint32_t least = heads[0] > 0 && facts::contains(facts::one_head_length, out_.architecture) ? 1 : 0;
        uint64_t k_dim = count(key("attention.key_length"), least, most);
        uint64_t v_dim = count(key("attention.value_length"), least, most);
        if (heads[0] > 0) {
            if ((k_dim == 0 || v_dim == 0) && (n_embd % heads[0] != 0 || n_embd < heads[0])) {
                refuse("key", head_key, std::to_string(heads[0]),
                       "a divisor of embedding_length " + std::to_string(n_embd) +
                           ", or key_length and value_length given");
            }
            k_dim = k_dim > 0 ? k_dim : n_embd / heads[0];
            v_dim = v_dim > 0 ? v_dim : n_embd / heads[0];
            head_lengths(k_dim, v_dim, n_embd, heads);
            latent_lengths(k_dim, v_dim, *std::max_element(kv.begin(), kv.end()));
        }
        const bool uniform = facts::contains(facts::uniform_heads, out_.architecture);
        for (uint32_t i = 0; i < n_layer; ++i) {   // 0 KV heads: a recurrent layer
            if (uniform && (heads[i] != heads[0] || kv[i] != kv[0])) {
                const bool is_kv = kv[i] != kv[0];
                refuse("key", is_kv ? kv_key : head_key,
                       std::to_string(is_kv ? kv[i] : heads[i]) + " for layer " + std::to_string(i),
                       std::to_string(is_kv ? kv[0] : heads[0]) + " for every layer of this architecture");
            }
            if (heads[i] > 0 && kv[i] > 0 && heads[i] % kv[i] != 0) {
                refuse("key", kv_key, std::to_string(kv[i]) + " for layer " + std::to_string(i),
                       "a divisor of head_count " + std::to_string(heads[i]));
            }
            if (heads[i] > 0 && i < static_cast<uint32_t>(out_.n_layer)) {
                const uint64_t k = kv[i] * k_dim, v = kv[i] * v_dim;
                out_.layers[i].cache_bytes_f16 = 2 * (k + v);
                out_.layers[i].cache_bytes_q8_0 = 34 * ((k + 31) / 32 + (v + 31) / 32);
                out_.cache_bytes_f16 += out_.layers[i].cache_bytes_f16;
                out_.cache_bytes_q8_0 += out_.layers[i].cache_bytes_q8_0;
            }
        }
        out_.n_head = static_cast<int32_t>(*std::max_element(heads.begin(), heads.end()));
        out_.n_head_kv = static_cast<int32_t>(*std::max_element(kv.begin(), kv.end()));
    }

    // What a head's numbers must have in common with each other and with the embedding.
    void head_lengths(uint64_t k_dim, uint64_t v_dim, uint64_t n_embd, const std::vector<uint32_t> & heads) {
        constexpr uint32_t most = 65536;
        const auto other_length = [&](std::string_view name, uint64_t is, uint64_t wanted) {
            refuse("key", key(name), std::to_string(is),
                   std::to_string(wanted) + ": keys and values of this architecture have one length");
        };
        const bool one_length = facts::contains(facts::one_head_length, out_.architecture);
        if (one_length && v_dim != k_dim) {
            const bool says_v = file_.find(key("attention.value_length")) != nullptr;
            other_length(says_v ? "attention.value_length" : "attention.key_length", says_v ? v_dim : k_dim,
                         says_v ? k_dim : v_dim);
        }
        for (const std::string_view name : {"attention.key_length_swa", "attention.value_length_swa"}) {
            const uint32_t length = count(key(name), 0, most);
            if (one_length && file_.find(key(name)) != nullptr && length != k_dim) {
                other_length(name, length, k_dim);
            }
        }
        const uint64_t swa_dim = std::max<uint64_t>(k_dim, count(key("attention.key_length_swa"), 0, most));
        rotation("rope.dimension_count", k_dim, k_dim);
        rotation("rope.dimension_count_swa", k_dim, swa_dim);
        uint64_t sections = 0;
        if (const Value * value = file_.find(key("rope.dimension_sections")); value != nullptr && value->is_array) {
            for (const uint32_t n : per_layer(key("rope.dimension_sections"), static_cast<uint32_t>(value->n), most)) {
                sections += n;
            }
        }
        if (sections > swa_dim) {
            refuse("key", key("rope.dimension_sections"), "a sum of " + std::to_string(sections),
                   "no more than a head's length " + std::to_string(swa_dim));
        }
        if (facts::contains(facts::queries_as_wide_as_embedding, out_.architecture)) {
            for (size_t i = 0; i < heads.size(); ++i) {
                if (heads[i] > 0 && heads[i] * k_dim != n_embd) {
                    refuse("key", key("attention.head_count"),
                           std::to_string(heads[i]) + " for layer " + std::to_string(i),
                           std::to_string(n_embd / std::max<uint64_t>(1, k_dim)) + ": heads of length " +
                               std::to_string(k_dim) + " make an embedding of " + std::to_string(n_embd));
                }
            }
        }
    }

    // Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434) keeps a compressed value, and beside it the rotated
    // part of a key; the lengths of a head's own keys and values have keys of their own.
    void latent_lengths(uint64_t k_dim, uint64_t v_dim, uint32_t n_kv) {
        constexpr uint32_t most = 65536;
        const uint32_t head = count(key("attention.key_length_mla"), 0, most);
        if (head == 0 || count(key("attention.value_length_mla"), 0, most) == 0) {
            return;
        }
        const uint64_t rotated = count(key("rope.dimension_count"), 0, most);
        if (head <= rotated) {
            refuse("key", key("attention.key_length_mla"), std::to_string(head),
                   "more than rope.dimension_count " + std::to_string(rotated));
        }
        const auto must_be = [&](std::string_view name, uint64_t is, uint64_t wanted, const char * why) {
            if (is != wanted) {
                refuse("key", key(name), std::to_string(is), std::to_string(wanted) + why);
            }
        };
        must_be("attention.head_count_kv", n_kv, 1, ": all heads share what is kept");
        const uint64_t rank = count(key("attention.kv_lora_rank"), 0, most);
        must_be("attention.key_length", k_dim, rank + rotated, ", kv_lora_rank and rope.dimension_count together");
        must_be("attention.value_length", v_dim, rank, ", the kv_lora_rank");
        if (const uint32_t windowed = count(key("attention.kv_lora_rank_swa"), 0, most); windowed > 0) {
            const auto length = [&](std::string_view name, uint64_t otherwise) {
                return file_.find(key(name)) != nullptr ? count(key(name), 0, most) : otherwise;
            };
            must_be("attention.key_length_swa", length("attention.key_length_swa", k_dim), windowed + rotated,
                    ", kv_lora_rank_swa and rope.dimension_count together");
            must_be("attention.value_length_swa", length("attention.value_length_swa", v_dim), windowed,
                    ", the kv_lora_rank_swa");
        }
    }

    void rotation(std::string_view name, uint64_t head_dim, uint64_t most) {
        const Value * value = file_.find(key(name));
        if (value == nullptr || value->is_array) {
            return;
        }
        // 0: a computation that never ends.
        const bool rotates = !facts::contains(facts::without_rotation, out_.architecture);
        const uint32_t n = count(key(name), rotates ? 1 : 0, most);
        if (n % 2 != 0) {
            refuse("key", key(name), std::to_string(n), "an even number");
        }
        if (facts::contains(facts::whole_head_rotated, out_.architecture) && n != head_dim) {
            refuse("key", key(name), std::to_string(n), std::to_string(head_dim) + ", the length of a head");
        }
    }

    // Of layers that keep a state: its sizes must fit each other.
    void recurrence(uint64_t n_embd) const {
        const std::string name = key("ssm.inner_size");
        if (file_.find(name) == nullptr) {
            return;
        }
        const uint64_t inner = count(name, 0, 1u << 24);
        const std::string & architecture = out_.architecture;
        if ((architecture == "jamba" || architecture == "granitehybrid") && inner > 0 && inner != 2 * n_embd) {
            refuse("key", name, std::to_string(inner), std::to_string(2 * n_embd) + ", twice embedding_length");
        }
        if (architecture == "qwen3next" || architecture == "qwen35" || architecture == "qwen35moe" ||
            architecture == "qwen4exp") {
            const uint64_t n_state = count(key("ssm.state_size"), 1, 65536, true);
            const uint64_t n_values = count(key("ssm.time_step_rank"), 1, 65536, true);
            const uint64_t n_keys = count(key("ssm.group_count"), 1, 65536, true);
            if (inner != n_state * n_values) {
                refuse("key", name, std::to_string(inner),
                       std::to_string(n_state * n_values) + ", state_size times time_step_rank");
            }
            if (n_values % n_keys != 0) {
                refuse("key", key("ssm.group_count"), std::to_string(n_keys),
                       "a divisor of time_step_rank " + std::to_string(n_values));
            }
        }
    }

    // An indexer that looks at several keys at once picks whole groups of them.
    void pooled_indexer() const {
        const std::string name = key("attention.indexer.kpool");
        if (out_.architecture != "glm5-next" || file_.find(name) == nullptr) {
            return;
        }
        const uint32_t n_pooled = count(name, 2, 65536),
                       top_k = count(key("attention.indexer.top_k"), 1, 1u << 24, true);
        if (top_k % n_pooled != 0) {
            refuse("key", name, std::to_string(n_pooled), "a divisor of indexer.top_k " + std::to_string(top_k));
        }
    }

    // A model that runs through the same layers several times has a block for each time.
    void repetition(uint32_t n_layer) const {
        if (out_.architecture != "hrm_text") {
            return;
        }
        constexpr uint64_t most = 512;
        const uint64_t n_in_stack = count(key("hrm.layers_per_stack"), 1, most, true);
        const uint64_t n_high = count(key("hrm.h_cycles"), 1, most, true);
        const uint64_t n_low = count(key("hrm.l_cycles"), 1, most, true);
        if (const uint64_t n_blocks = n_in_stack * n_high * (n_low + 1); n_blocks != n_layer) {
            refuse("key", key("block_count"), std::to_string(n_layer),
                   std::to_string(n_blocks) + ", hrm.layers_per_stack * hrm.h_cycles * (hrm.l_cycles + 1)");
        }
    }

    // Encoders with sliding windows make a mask for windows and one for whole texts, and both must have a layer.
    void windows(uint32_t n_layer) {
        const bool gemma = out_.architecture == "gemma-embedding";
        const std::string name = key("attention.sliding_window_pattern");
        constexpr uint32_t longest = 1u << 30;   // tokens: what is added to it must not wrap around
        count(key("attention.sliding_window"), 0, longest);
        const Value * listed = file_.find(name);
        if (listed != nullptr && listed->is_array && facts::contains(facts::windowed, out_.architecture) &&
            count(key("attention.sliding_window"), 0, UINT32_MAX) > 0) {
            const std::vector<uint32_t> windowed = per_layer(name, n_layer, UINT32_MAX);
            if (std::all_of(windowed.begin(), windowed.end(), [](uint32_t one) { return one == 0; })) {
                refuse("key", name, "no layer with a window", "at least one, for attention.sliding_window is set");
            }
        }
        if (!gemma &&
            (out_.architecture != "modern-bert" || count(key("attention.sliding_window"), 0, 1u << 24) == 0)) {
            return;
        }
        uint32_t n_windowed = 0;
        const Value * pattern = file_.find(name);
        if (pattern != nullptr && pattern->is_array) {
            for (const uint32_t windowed : per_layer(name, n_layer, 1)) {
                n_windowed += windowed;
            }
        } else {   // every n-th layer sees the whole text: Gemma's last of n, ModernBERT's first
            const uint32_t n = pattern == nullptr ? (gemma ? 6 : 3) : count(name, 0, 512);
            n_windowed = n == 0 ? n_layer : n_layer - (gemma ? n_layer / n : (n_layer + n - 1) / n);
        }
        if (n_windowed == 0 || n_windowed == n_layer) {
            refuse("key", name, std::to_string(n_windowed) + " windows in " + std::to_string(n_layer) + " layers",
                   "layers of both kinds, with a window and without");
        }
    }

    void floats() {
        const std::string prefix = out_.architecture + '.';
        for (const Value & value : file_.values()) {
            if (value.type != Type::f32 || value.key.substr(0, prefix.size()) != prefix) {
                continue;
            }
            const bool positive = value.key == prefix + "rope.freq_base" || value.key == prefix + "rope.freq_base_swa";
            // llama.cpp writes 0 for the epsilons that a model does not use.
            const bool factor = ends_with(value.key, "epsilon") || ends_with(value.key, "rope.scaling.factor") ||
                                ends_with(value.key, "rope.scale_linear");
            for (uint64_t i = 0; i < value.n; ++i) {
                const float x = GgufFile::element<float>(value, i);
                const char * allowed = nullptr;
                if (positive && !(std::isfinite(x) && x > 0)) {
                    allowed = "a finite number above 0";
                } else if (factor && !(std::isfinite(x) && x >= 0)) {
                    allowed = "a finite number, 0 or above";
                } else if (std::isnan(x)) {
                    allowed = "a number";
                }
                if (allowed != nullptr) {
                    char text[32];
                    std::snprintf(text, sizeof(text), "%g", static_cast<double>(x));
                    refuse("key", value.key, text, allowed);
                }
            }
        }
    }

    // The width that embeddings are read with is a key of its own; it must be the width that is computed.
    void embedding() {
        const uint64_t n_embd = static_cast<uint64_t>(out_.n_embd);
        const uint64_t n_out = count(key("embedding_length_out"), 0, 1u << 20);
        const bool own_layer = facts::contains(facts::layer_after_pooling, out_.architecture) && dense_out_ != 0;
        const uint64_t width = own_layer ? dense_out_ : n_embd;
        if (n_out != 0 && n_out != width && !facts::contains(facts::own_embedding_width, out_.architecture)) {
            refuse("key", key("embedding_length_out"), std::to_string(n_out),
                   std::to_string(width) + ", the width of the model's last layer");
        }
        if (out_.architecture == "gemma-embedding") {
            const uint64_t in2 = count(key("dense_2_feat_in"), 0, 1u << 20),
                           out2 = count(key("dense_2_feat_out"), 0, 1u << 20);
            const uint64_t in3 = count(key("dense_3_feat_in"), 0, 1u << 20),
                           out3 = count(key("dense_3_feat_out"), 0, 1u << 20);
            const auto same = [&](const char * name, uint64_t value, uint64_t wanted) {
                if (value != 0 && value != wanted) {
                    refuse("key", key(name), std::to_string(value), std::to_string(wanted));
                }
            };
            same("dense_2_feat_in", in2, n_embd);
            same("dense_3_feat_out", out3, n_embd);
            if (dense_out_ != 0) {
                same("dense_2_feat_out", out2, in3 != 0 ? in3 : n_embd);
            }
        }
    }

    void tasks() {
        const std::string & architecture = out_.architecture;
        const bool causal = file_.boolean(key("attention.causal")).value_or(true);
        out_.whole_text = !causal || facts::contains(facts::encoders, architecture) ||
                          facts::contains(facts::diffusion, architecture) ||
                          facts::contains(facts::encoder_decoders, architecture);
        const bool ranks = out_.pooling == 4;
        if (const Value * labels = file_.find(key("classifier.output_labels"));
            labels != nullptr && labels->is_array && labels->type == Type::string) {
            if (labels->n > 1024) {
                refuse("key", labels->key, std::to_string(labels->n) + " labels", range(0, 1024));
            }
            GgufStrings strings(*labels);
            for (uint64_t i = 0; i < labels->n; ++i) {
                out_.labels.push_back(clean_utf8(strings.next(), 256));
            }
        }
        if (ranks && out_.labels.size() > 1 && names_.count("cls.output.weight") == 0 && !out_.vocab_only) {
            refuse("key", key("classifier.output_labels"), std::to_string(out_.labels.size()) + " labels",
                   "at most 1 without a tensor cls.output.weight, which would compute their scores");
        }
        // These end in a softmax over their labels: a single one would give every document the score 1.
        if (ranks && (architecture == "qwen3" || architecture == "qwen3vl") && names_.count("cls.output.weight") != 0 &&
            out_.labels.size() < 2) {
            refuse("key", key("classifier.output_labels"), std::to_string(out_.labels.size()) + " labels",
                   "at least 2, yes and no: a score is a label's share among them");
        }
        if (facts::contains(facts::parts, architecture)) {
            return;
        }
        if (ranks) {
            if (names_.count("cls.weight") + names_.count("cls.output.weight") > 0) {
                out_.tasks.push_back(Task::rank);
            }
            return;
        }
        if (!out_.whole_text) {
            out_.tasks.push_back(Task::generate);
        }
        if (!facts::contains(facts::no_embeddings, architecture)) {
            out_.tasks.push_back(Task::embed);
        }
    }

    void tensors(const GgufFile & file);
    void place(const GgufFile::Tensor & tensor);
    void splits();

    const GgufFile & file_;
    const std::string & path_;
    GgufRole role_;
    GgufSummary out_;
    std::vector<GgufFile> splits_;                 // beside file_; the names below are views into them
    std::unordered_set<std::string_view> names_;   // of tensors, over all splits
    std::map<uint32_t, uint64_t> bytes_by_type_;
    uint64_t table_bytes_ = 0;  // of the token table
    uint64_t dense_out_ = 0;   // rows of the layer after the pooling; 0 = there is none
};

void Check::tensors(const GgufFile & file) {
    static const std::string_view f32_only[] = {
        "norm.weight", ".bias",  "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight",
        ".ssm_a",      ".ssm_d", "ssm_conv1d.weight", "shortconv.conv.weight",    ".attn_sinks.weight",
    };
    for (const GgufFile::Tensor & tensor : file.tensors()) {
        if (!names_.insert(tensor.name).second) {
            refuse("tensor", tensor.name, "in two splits", "unique names");
        }
        const GgufFile::TensorType & type = *GgufFile::tensor_type(tensor.type);
        const bool must_be_f32 = std::any_of(std::begin(f32_only), std::end(f32_only),
                                             [&](std::string_view end) { return ends_with(tensor.name, end); });
        const char * allowed = nullptr;
        if (tensor.name == "d2t") {
            allowed = std::string_view(type.name) == "I64" ? nullptr : "I64 for this index table";
        } else if (ends_with(tensor.name, "ffn_gate_tid2eid.weight")) {
            allowed = std::string_view(type.name) == "I32" ? nullptr : "I32 for this index table";
        } else if (must_be_f32) {
            allowed = type.kind == GgufFile::TensorType::Kind::f32 ? nullptr : "F32 for norms, biases and their like";
        } else if (type.kind == GgufFile::TensorType::Kind::other) {
            allowed = "F32, F16, BF16 or a quantized weight type";
        }
        if (allowed != nullptr) {
            refuse("tensor", tensor.name, std::string("of type ") + type.name, allowed);
        }
        if (tensor.name == "dense_2.weight") {
            dense_out_ = tensor.ne[1];
        }
        out_.n_params += tensor.n_elements;
        bytes_by_type_[tensor.type] += tensor.n_bytes;
        place(tensor);
    }
    out_.n_tensors += file.tensors().size();
    out_.tensor_bytes += file.tensor_bytes();
    out_.file_bytes += file.file_bytes();
    if (out_.quantization.empty() && !bytes_by_type_.empty()) {
        const auto most = std::max_element(bytes_by_type_.begin(), bytes_by_type_.end(),
                                           [](const auto & a, const auto & b) { return a.second < b.second; });
        out_.quantization = GgufFile::tensor_type(most->first)->name;
    }
}

// Adds a tensor's bytes to its layer's, or to those read on the way in or on the way out.
void Check::place(const GgufFile::Tensor & tensor) {
    constexpr std::string_view block = "blk.";
    const auto contains = [&](std::string_view part) { return tensor.name.find(part) != std::string_view::npos; };
    if (const size_t at = tensor.name.find(block); at != std::string_view::npos) {
        uint32_t layer = 0;
        const std::string_view number = tensor.name.substr(at + block.size());
        std::from_chars(number.data(), number.data() + number.size(), layer);
        if (layer < out_.layers.size()) {
            out_.layers[layer].weights_bytes += tensor.n_bytes;
            return;
        }
    }
    const bool input = contains("token_embd") || contains("position_embd") || contains("token_types");
    (input ? out_.input_bytes : out_.output_bytes) += tensor.n_bytes;
    table_bytes_ = tensor.name == "token_embd.weight" ? tensor.n_bytes : table_bytes_;
}

void Check::splits() {
    splits_ = later_splits(file_, path_);
    if (splits_.empty()) {
        return;
    }
    for (const GgufFile & file : splits_) {
        tensors(file);
    }
    const Value * total = file_.find("split.tensors.count");
    if (total == nullptr || total->is_array || total->type != Type::i32 ||
        GgufFile::element<int32_t>(*total, 0) != static_cast<int64_t>(out_.n_tensors)) {
        refuse("key", "split.tensors.count", total == nullptr ? "missing" : GgufFile::scalar_text(*total),
               std::to_string(out_.n_tensors) + " as i32, the tensors of all files");
    }
    out_.n_splits = static_cast<int32_t>(splits_.size() + 1);
}

}  // namespace

GgufSummary check_gguf(const std::string & path, GgufRole role) {
    const GgufFile file(path);
    return Check(file, path, role).run();
}

}  // namespace pgl
