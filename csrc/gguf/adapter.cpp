#include "gguf/adapter.h"

#include "gguf/check.h"
#include "gguf/facts.h"
#include "gguf/file.h"
#include "gguf/splits.h"

#include <array>
#include <map>

namespace pgl {
namespace {

using TensorShape = std::array<uint64_t, 4>;
using Tensors = std::map<std::string, GgufFile::Tensor>;

void add_tensors(const GgufFile & file, Tensors & tensors) {
    for (const GgufFile::Tensor & tensor : file.tensors()) {
        tensors.emplace(tensor.name, tensor);   // its own `name` is a view that may outlive the file: not used
    }
}

std::string shape_text(const TensorShape & shape) {
    std::string text;
    for (const uint64_t n : shape) {
        text += (text.empty() ? "" : " x ") + std::to_string(n);
    }
    return text;
}

}  // namespace

void check_adapter(const std::string & path, const std::string & model_path) {
    check_gguf(path, GgufRole::adapter);
    Tensors model, adapter;
    const GgufFile first(model_path);
    add_tensors(first, model);
    for (const GgufFile & file : later_splits(first, model_path)) {
        add_tensors(file, model);
    }
    add_tensors(GgufFile(path), adapter);
    // Where the output layer is the embedding itself, one pair would have to fit both ways round.
    const bool tied = model.count("output.weight") == 0 &&
                      !facts::contains(facts::encoders, first.string("general.architecture").value_or(""));
    if (adapter.empty()) {
        refuse("file", "adapter", "without tensors", "pairs of lora_a and lora_b");
    }
    for (const auto & [name, half] : adapter) {
        if (ends_with(name, "_norm.weight")) {   // the loader would leave it out without a word
            refuse("tensor", name, "a norm of its own", "pairs of lora_a and lora_b: train the adapter without norms");
        }
        if (!ends_with(name, ".lora_a")) {
            continue;   // a pair is looked at once; what belongs to no pair, the loader refuses
        }
        const std::string target = name.substr(0, name.size() - std::string_view(".lora_a").size());
        const auto other = adapter.find(target + ".lora_b");
        const auto base = model.find(target);
        if (other == adapter.end()) {
            refuse("tensor", name, "without its other half", "a tensor " + target + ".lora_b beside it");
        }
        if (base == model.end()) {
            refuse("tensor", name, "for a tensor that the model does not have", "an adapter made for this model");
        }
        const TensorShape &w = base->second.ne, &a = half.ne, &b = other->second.ne;
        // The embedding is looked up, not multiplied: its pair lies the other way round.
        const bool lookup = ends_with(target, "token_embd.weight");
        if (lookup && tied) {
            refuse("tensor", name, "for an embedding that is the output layer too",
                   "a model with a tensor output.weight");
        }
        if (std::string_view(GgufFile::tensor_type(base->second.type)->name) == "NVFP4") {
            refuse("tensor", name, "for a tensor of type NVFP4", "any other type of the model's tensors");
        }
        const TensorShape fits_a = lookup ? TensorShape{a[0], w[1], 1, 1} : TensorShape{w[0], a[1], w[2], w[3]};
        const TensorShape fits_b = lookup ? TensorShape{a[0], w[0], 1, 1} : TensorShape{a[1], w[1], w[2], w[3]};
        if (a != fits_a) {
            refuse("tensor", name, "of shape " + shape_text(a), shape_text(fits_a) + " for this model");
        }
        if (b != fits_b) {
            refuse("tensor", other->first, "of shape " + shape_text(b), shape_text(fits_b) + " for this model");
        }
    }
}

}  // namespace pgl
