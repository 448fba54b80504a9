// Fuzz target: any bytes as a message of a worker are unpacked or refused.
#include "fuzz.h"
#include "worker/wire.h"

using namespace pgl;

std::vector<std::string> first_inputs() {
    Event event;
    event.text = "a text";
    event.details = {{"key", "value"}};
    event.logprobs = {{1, -0.5f, 2, "a", {{2, -1, 1, "b", {}}}}};
    event.tokens = {1};
    event.embedding = {1, 2, 3};
    Request request;
    request.prompt = {{"a prompt", true}, {"more", false}};
    request.sampling.logit_bias = {{1, 2.0f}};
    request.lora = {{0, 0.5f}};
    ModelInfo info;
    info.devices.resize(2);
    return {wire::Packer().add(std::vector<Event>{event, event}).bytes(), wire::Packer().add(request).bytes(),
            wire::Packer().add(info).bytes()};
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    const std::string_view bytes(reinterpret_cast<const char *>(data), size);
    const auto read = [&](auto type) {
        try {
            wire::Unpacker(bytes).get<decltype(type)>();
        } catch (const Error & e) {
            CHECK_EQ(e.code, "invalid_message");
        }
    };
    read(std::vector<Event>{});
    read(Request{});
    read(ModelInfo{});
    read(std::vector<std::pair<int, std::string>>{});
    return 0;
}
