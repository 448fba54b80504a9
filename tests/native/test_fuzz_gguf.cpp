// Fuzz target: any bytes as a model file end in a summary or in a refusal that has a name.
#include "fuzz.h"
#include "gguf/check.h"
#include "gguf_builder.h"

using namespace pgl;

namespace {

const builder::TempDir & folder() {
    static const builder::TempDir temp;
    return temp;
}

}  // namespace

std::vector<std::string> first_inputs() {
    builder::Gguf model = builder::tiny_llama(), adapter = model;
    adapter.set("general.type", "adapter");
    return {model.file(), adapter.file()};
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    const std::string path = folder().write("input.gguf", std::string(reinterpret_cast<const char *>(data), size));
    for (const GgufRole role : {GgufRole::model, GgufRole::adapter}) {
        try {
            check_gguf(path, role);
        } catch (const Error & e) {
            CHECK(e.code == "invalid_model" || e.code == "not_found");
        }
    }
    return 0;
}
