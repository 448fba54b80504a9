// The Python module _core: converts, releases the GIL, maps exceptions. No decisions.
#include "bare_loop.h"
#include "devices.h"
#include "engine.h"
#include "gguf_check.h"
#include "kernels/kernels.h"
#include "log.h"
#include "machine.h"
#include "outbox.h"
#include "request.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <thread>

namespace py = pybind11;

namespace pgl {
namespace {

const char * name_of(EventKind kind) {
    switch (kind) {
        case EventKind::progress: return "progress";
        case EventKind::loaded: return "loaded";
        case EventKind::text: return "text";
        case EventKind::finished: return "finished";
        case EventKind::embedding: return "embedding";
        case EventKind::error: return "error";
    }
    return "";
}

const char * name_of(FinishReason reason) {
    switch (reason) {
        case FinishReason::none: return "";
        case FinishReason::stop: return "stop";
        case FinishReason::length: return "length";
        case FinishReason::content_filter: return "content_filter";
    }
    return "";
}

[[noreturn]] void refuse_field(const std::string & field, const std::string & why) {
    throw Error("invalid_request", field + ": " + why, {{"field", field}});
}

// Bytes of a stranger's file or of a library's log may be anything.
py::str to_text(const std::string & bytes) {
    return py::reinterpret_steal<py::str>(
        PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), "replace"));
}

py::list to_list(const std::vector<std::string> & texts) {
    py::list list;
    for (const std::string & text : texts) {
        list.append(to_text(text));
    }
    return list;
}

// A path as the operating system spells it: on POSIX any bytes, which Python's str carries as surrogates.
std::string path_from(const py::object & path) {
    PyObject * bytes = nullptr;
    if (PyUnicode_FSConverter(path.ptr(), &bytes) == 0) {
        throw py::error_already_set();
    }
    return py::reinterpret_steal<py::bytes>(bytes);
}

py::str path_text(const std::string & path) {
    return py::reinterpret_steal<py::str>(PyUnicode_DecodeFSDefaultAndSize(path.data(), static_cast<Py_ssize_t>(path.size())));
}

py::list to_list(const std::vector<Task> & tasks) {
    py::list list;
    for (const Task task : tasks) {
        list.append(name_of(task));
    }
    return list;
}

py::list to_list(const std::vector<std::pair<int, std::string>> & lines) {
    py::list list;
    for (const auto & [level, line] : lines) {
        list.append(py::make_tuple(level, to_text(line)));
    }
    return list;
}

// Reads known keys of a dict into a struct's members; an unknown key or a wrong type is an error naming it.
class Fields {
  public:
    Fields(const py::dict & dict, std::string where) : dict_(dict), where_(std::move(where)) {}

    template <typename T> Fields & read(const char * name, T & out) {
        if (!dict_.contains(name)) {
            return *this;
        }
        ++n_read_;
        try {
            out = py::cast<T>(dict_[name]);
        } catch (const py::cast_error &) {
            refuse_field(where_ + name, "wrong type or out of range: " + std::string(py::repr(dict_[name])));
        }
        return *this;
    }

    template <typename T> Fields & read(const char * name, T & out, const std::map<std::string, T> & words) {
        std::string word;
        read(name, word);
        if (dict_.contains(name)) {
            const auto found = words.find(word);
            if (found == words.end()) {
                std::string allowed;
                for (const auto & [key, value] : words) {
                    allowed += (allowed.empty() ? "" : ", ") + key;
                }
                refuse_field(where_ + name, "must be one of " + allowed + ", got " + word);
            }
            out = found->second;
        }
        return *this;
    }

    void done(std::initializer_list<const char *> elsewhere = {}) const {
        size_t n = n_read_;
        for (const char * name : elsewhere) {
            n += dict_.contains(name) ? 1 : 0;
        }
        if (n != dict_.size()) {
            refuse_field(where_, "unknown key among " + std::string(py::repr(py::list(dict_))));
        }
    }

  private:
    const py::dict & dict_;
    std::string where_;
    size_t n_read_ = 0;
};

EngineOptions options_from(const py::dict & dict) {
    EngineOptions o;
    std::vector<std::pair<py::object, float>> lora;
    Fields(dict, "")
        .read("device", o.device, {{"auto", Device::automatic}, {"cpu", Device::cpu}, {"gpu", Device::gpu}})
        .read("n_gpu_layers", o.n_gpu_layers)
        .read("n_ctx", o.n_ctx)
        .read("max_streams", o.max_streams)
        .read("max_queue", o.max_queue)
        .read("n_threads", o.n_threads)
        .read("n_batch", o.n_batch)
        .read("cache_type", o.cache_type, {{"f16", CacheType::f16}, {"q8_0", CacheType::q8_0}})
        .read("flash_attention", o.flash_attention)
        .read("mmap", o.mmap)
        .read("kernels", o.kernels)
        .read("prefix_cache_bytes", o.prefix_cache_bytes)
        .read("check_tensors", o.check_tensors)
        .read("embeddings", o.embeddings)
        .read("lora", lora)
        .done();
    for (const auto & [path, scale] : lora) {
        o.lora.emplace_back(path_from(path), scale);
    }
    return o;
}

Request request_from(const py::dict & dict) {
    Request r;
    std::vector<std::pair<std::string, bool>> spans;
    py::dict sampling;
    Fields(dict, "")
        .read("task", r.task, {{"generate", Task::generate}, {"embed", Task::embed}, {"rank", Task::rank}})
        .read("prompt", spans)
        .read("tokens", r.tokens)
        .read("max_tokens", r.max_tokens)
        .read("stop", r.stop)
        .read("filter", r.filter)
        .read("ignore_eos", r.ignore_eos)
        .read("sampling", sampling)
        .done();
    for (auto & [text, trusted] : spans) {
        r.prompt.push_back({std::move(text), trusted});
    }
    SamplingParams & s = r.sampling;
    Fields(sampling, "sampling.")
        .read("temperature", s.temperature)
        .read("top_p", s.top_p)
        .read("top_k", s.top_k)
        .read("min_p", s.min_p)
        .read("typical_p", s.typical_p)
        .read("repetition_penalty", s.repetition_penalty)
        .read("frequency_penalty", s.frequency_penalty)
        .read("presence_penalty", s.presence_penalty)
        .read("seed", s.seed)
        .read("n_logprobs", s.n_logprobs)
        .read("logit_bias", s.logit_bias)
        .done();
    return r;
}

py::dict to_dict(const TokenLogprob & entry) {
    py::dict dict;
    dict["token"] = entry.token;
    dict["logprob"] = entry.logprob;
    dict["bytes"] = py::bytes(entry.bytes);
    py::list top;
    for (const TokenLogprob & alternative : entry.top) {
        top.append(to_dict(alternative));
    }
    dict["top"] = std::move(top);
    return dict;
}

py::dict to_dict(const DeviceInfo & device) {
    py::dict dict;
    dict["name"] = device.name;
    dict["description"] = device.description;
    dict["gpu"] = device.gpu;
    dict["memory_bytes"] = device.memory_bytes;
    dict["free_bytes"] = device.free_bytes;
    return dict;
}

py::list to_list(const std::vector<DeviceInfo> & devices) {
    py::list list;
    for (const DeviceInfo & device : devices) {
        list.append(to_dict(device));
    }
    return list;
}

py::dict to_dict(const std::map<std::string, std::string> & map) {
    py::dict dict;
    for (const auto & [key, value] : map) {
        dict[to_text(key)] = to_text(value);
    }
    return dict;
}

py::dict to_dict(const ModelInfo & info) {
    py::dict dict;
    dict["path"] = path_text(info.path);
    dict["architecture"] = to_text(info.architecture);
    dict["description"] = to_text(info.description);
    dict["quantization"] = to_text(info.quantization);
    dict["chat_template"] = to_text(info.chat_template);
    dict["rerank_template"] = to_text(info.rerank_template);
    dict["tasks"] = to_list(info.tasks);
    dict["labels"] = to_list(info.labels);
    dict["bos_text"] = to_text(info.bos_text);
    dict["eos_text"] = to_text(info.eos_text);
    dict["special_tokens"] = to_dict(info.special_tokens);
    dict["additional_special_tokens"] = to_list(info.additional_special_tokens);
    dict["longest_piece"] = info.longest_piece;
    dict["n_params"] = info.n_params;
    dict["file_bytes"] = info.file_bytes;
    dict["weights_bytes"] = info.weights_bytes;
    dict["cache_bytes"] = info.cache_bytes;
    dict["prefix_cache_bytes"] = info.prefix_cache_bytes;
    dict["n_ctx"] = info.n_ctx;
    dict["n_ctx_train"] = info.n_ctx_train;
    dict["n_vocab"] = info.n_vocab;
    dict["n_embd"] = info.n_embd;
    dict["n_layer"] = info.n_layer;
    dict["max_streams"] = info.max_streams;
    dict["n_threads"] = info.n_threads;
    dict["n_gpu_layers"] = info.n_gpu_layers;
    dict["n_batch"] = info.n_batch;
    dict["add_bos"] = info.add_bos;
    dict["flash_attention"] = info.flash_attention;
    dict["cache_type"] = info.cache_type;
    dict["kernels"] = info.kernels;
    dict["build"] = info.build;
    dict["load_ms"] = info.load_ms;
    dict["devices"] = to_list(info.devices);
    dict["metadata"] = to_dict(info.metadata);
    return dict;
}

py::dict to_dict(const Stats & stats) {
    py::dict dict;
    dict["n_running"] = stats.n_running;
    dict["n_waiting"] = stats.n_waiting;
    dict["n_requests"] = stats.n_requests;
    dict["n_finished"] = stats.n_finished;
    dict["n_cancelled"] = stats.n_cancelled;
    dict["n_failed"] = stats.n_failed;
    dict["n_prompt_tokens"] = stats.n_prompt_tokens;
    dict["n_cached_tokens"] = stats.n_cached_tokens;
    dict["n_generated_tokens"] = stats.n_generated_tokens;
    dict["n_steps"] = stats.n_steps;
    dict["n_cells"] = stats.n_cells;
    dict["n_cells_used"] = stats.n_cells_used;
    dict["prefix_cache_bytes"] = stats.prefix_cache_bytes;
    return dict;
}

py::dict to_dict(const GgufSummary & s) {
    py::dict dict;
    dict["file_bytes"] = s.file_bytes;
    dict["tensor_bytes"] = s.tensor_bytes;
    dict["n_params"] = s.n_params;
    dict["n_splits"] = s.n_splits;
    dict["vocab_only"] = s.vocab_only;
    dict["architecture"] = to_text(s.architecture);
    dict["name"] = to_text(s.name);
    dict["tasks"] = to_list(s.tasks);
    dict["labels"] = to_list(s.labels);
    dict["quantization"] = to_text(s.quantization);
    dict["chat_template"] = to_text(s.chat_template);
    dict["n_layer"] = s.n_layer;
    dict["n_embd"] = s.n_embd;
    dict["n_head"] = s.n_head;
    dict["n_head_kv"] = s.n_head_kv;
    dict["n_ctx_train"] = s.n_ctx_train;
    dict["n_vocab"] = s.n_vocab;
    dict["cache_bytes_f16"] = s.cache_bytes_f16;
    dict["cache_bytes_q8_0"] = s.cache_bytes_q8_0;
    dict["metadata"] = to_dict(s.metadata);
    return dict;
}

// The GIL is given back for as long as this lives. Before Python 3.14 a daemon thread that wants it again while the
// interpreter ends is taken off by pthread_exit(), whose unwinding would end the process at the first function that must
// not throw. Such a thread rests here instead, for the moment that is left.
class ReleasedGil {
  public:
    ReleasedGil() : state_(PyEval_SaveThread()) {}
    ReleasedGil(const ReleasedGil &) = delete;
    ReleasedGil & operator=(const ReleasedGil &) = delete;
    ~ReleasedGil() {
        try {
            PyEval_RestoreThread(state_);
        } catch (...) {
            for (;;) {
                std::this_thread::sleep_for(std::chrono::hours(1));
            }
        }
    }

  private:
    PyThreadState * state_;
};

// For waits in the main thread, which alone takes signals: true once a handler has raised, as Ctrl-C's does.
machine::Poll signals() {
    const py::module_ threading = py::module_::import("threading");
    if (!threading.attr("current_thread")().is(threading.attr("main_thread")())) {
        return nullptr;
    }
    return [] {
        const PyGILState_STATE state = PyGILState_Ensure();
        const bool raised = PyErr_CheckSignals() != 0;
        PyGILState_Release(state);
        return raised;
    };
}

// Every entry converts with the GIL, then works without it.
template <typename Work> auto without_gil(const Work & work) {
    const ReleasedGil released;
    return work();
}

}  // namespace
}  // namespace pgl

PYBIND11_MODULE(_core, m) {
    using namespace pgl;
    m.doc() = "The native border: eight verbs (Engine(), submit, cancel, wait_events, tokenize, info, stats, close).";

    static py::handle error = py::exception<Error>(m, "Error").release();
    error.attr("__doc__") = "A refusal or failure by name: args = (code, message, details).";
    py::register_exception_translator([](std::exception_ptr pointer) {
        try {
            std::rethrow_exception(pointer);
        } catch (const Error & e) {
            if (e.code == "interrupted" && PyErr_Occurred() != nullptr) {
                return;   // what the signal's handler raised
            }
            const py::tuple args = py::make_tuple(e.code, to_text(e.what()), to_dict(e.details));
            PyErr_SetObject(error.ptr(), args.ptr());
        } catch (const std::bad_alloc &) {
            const py::tuple args = py::make_tuple("out_of_memory", "memory ran out", py::dict());
            PyErr_SetObject(error.ptr(), args.ptr());
        }
    });

    py::class_<Event>(m, "Event")
        .def_readonly("id", &Event::id)
        .def_property_readonly("kind", [](const Event & e) { return name_of(e.kind); })
        .def_property_readonly("text", [](const Event & e) { return to_text(e.text); })
        .def_readonly("code", &Event::code)
        .def_property_readonly("details", [](const Event & e) { return to_dict(e.details); })
        .def_property_readonly("reason", [](const Event & e) { return name_of(e.reason); })
        .def_readonly("progress", &Event::progress)
        .def_property_readonly("n_prompt", [](const Event & e) { return e.usage.n_prompt; })
        .def_property_readonly("n_cached", [](const Event & e) { return e.usage.n_cached; })
        .def_property_readonly("n_generated", [](const Event & e) { return e.usage.n_generated; })
        .def_property_readonly("queue_ms", [](const Event & e) { return e.timings.queue_ms; })
        .def_property_readonly("prefill_ms", [](const Event & e) { return e.timings.prefill_ms; })
        .def_property_readonly("first_token_ms", [](const Event & e) { return e.timings.first_token_ms; })
        .def_property_readonly("total_ms", [](const Event & e) { return e.timings.total_ms; })
        .def_property_readonly("logprobs",
                               [](const Event & e) {
                                   py::list list;
                                   for (const TokenLogprob & entry : e.logprobs) {
                                       list.append(to_dict(entry));
                                   }
                                   return list;
                               })
        .def_property_readonly("embedding", [](const Event & e) -> py::object {
            if (e.kind != EventKind::embedding) {
                return py::none();
            }
            return py::array_t<float>(static_cast<py::ssize_t>(e.embedding.size()), e.embedding.data());
        });

    py::class_<Outbox, std::shared_ptr<Outbox>>(m, "Outbox")
        .def("wait", &Outbox::wait, py::arg("timeout_ms"), py::call_guard<ReleasedGil>())
        .def("wake", &Outbox::wake, py::call_guard<ReleasedGil>());

    py::class_<Engine, std::unique_ptr<Engine, Engine::Release>>(m, "Engine")
        .def(py::init([](const py::object & path, const py::dict & options) {
                 return std::unique_ptr<Engine, Engine::Release>(new Engine(path_from(path), options_from(options)));
             }),
             py::arg("path"), py::arg("options"))
        .def(
            "submit",
            [](Engine & engine, const py::dict & request, std::shared_ptr<Outbox> outbox) {
                Request native = request_from(request);
                native.outbox = std::move(outbox);
                const machine::Poll poll = signals();
                return without_gil([&] { return engine.submit(std::move(native), poll); });
            },
            py::arg("request"), py::arg("outbox") = py::none())
        .def("outbox", [](const Engine &, bool quiet) { return Outbox::make(quiet); }, py::arg("quiet") = false)
        .def("cancel", &Engine::cancel, py::arg("id"), py::call_guard<ReleasedGil>())
        .def("wait_events", &Engine::wait_events, py::arg("timeout_ms"), py::call_guard<ReleasedGil>())
        .def(
            "tokenize",
            [](const Engine & engine, const std::vector<std::pair<std::string, bool>> & spans, bool add_bos) {
                std::vector<Span> native;
                for (const auto & [text, trusted] : spans) {
                    native.push_back({text, trusted});
                }
                const machine::Poll poll = signals();
                return without_gil([&] { return engine.tokenize(std::move(native), add_bos, poll); });
            },
            py::arg("spans"), py::arg("add_bos") = true)
        .def("info", [](const Engine & engine) { return to_dict(without_gil([&] { return engine.info(); })); })
        .def("stats", [](const Engine & engine) { return to_dict(without_gil([&] { return engine.stats(); })); })
        .def(
            "drain_log", [](const Engine & engine) { return to_list(engine.drain_log()); },
            "What llama.cpp said while it worked for this engine, since the last call: (level as in logging, text).")
        .def("close", &Engine::close, py::call_guard<ReleasedGil>());

    m.def(
        "inspect",
        [](const py::object & path) {
            return to_dict(without_gil([file = path_from(path)] { return check_gguf(file); }));
        },
        py::arg("path"), "What a GGUF file says about itself, validated, without loading it.");
    m.def(
        "system",
        [] {
            py::dict dict;
            dict["devices"] = to_list(without_gil([] { return list_devices(); }));
            dict["cpu_features"] = cpu_features();
            dict["n_threads"] = machine::usable_threads();
            dict["available_bytes"] = machine::available_bytes();
            dict["kernels"] = kernels::isa();
            dict["build"] = build_id();
            return dict;
        },
        "Devices, CPU features, usable threads and memory of this machine, as this process may use them.");
    m.def(
        "drain_log", [] { return to_list(log::common().drain()); },
        "llama.cpp's log lines that belong to no engine, since the last call: (level as in logging, text).");
    m.def(
        "bare_loop",
        [](const std::string & path, int32_t n_prompt, int32_t n_tokens, int32_t n_ctx, int32_t n_threads, bool kernels) {
            const BareLoop loop =
                without_gil([&] { return bare_loop(path, n_prompt, n_tokens, n_ctx, n_threads, kernels); });
            py::dict dict;
            dict["prefill_ms"] = loop.prefill_ms;
            dict["token_ms"] = loop.token_ms;
            return dict;
        },
        py::arg("path"), py::arg("n_prompt"), py::arg("n_tokens"), py::arg("n_ctx") = 2048, py::arg("n_threads") = 0,
        py::arg("kernels") = true, "llama.cpp's own greedy loop on this build, for benchmarks: times in milliseconds.");
}
