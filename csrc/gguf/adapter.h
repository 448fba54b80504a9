// GGUF adapter: whether a LoRA file fits a model. Pure.
#pragma once

#include <string>

namespace pgl {

// Checks the file as check_gguf does an adapter, and that every pair of its tensors has a tensor of the model that it
// fits in all its dimensions. `model_path`: a model that check_gguf has passed. Errors as check_gguf's.
void check_adapter(const std::string & path, const std::string & model_path);

}  // namespace pgl
