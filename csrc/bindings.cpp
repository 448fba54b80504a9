// The Python module _core: converts, releases the GIL, maps exceptions. No decisions.
#include "engine/engine.h"
#include "engine/outbox.h"
#include "gguf/check.h"
#include "kernels/kernels.h"
#include "llama/devices.h"
#include "llama/log.h"
#include "platform/machine.h"
#include "request.h"
#include "worker/remote_engine.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <thread>
#include <type_traits>

namespace py = pybind11;

namespace pgl {
namespace {

[[noreturn]] void refuse_field(const std::string & field, const std::string & why) {
    throw Error("invalid_request", field + ": " + why, {{"field", field}});
}

// A path as the operating system spells it: on POSIX any bytes, which Python's str carries as surrogates.
std::string path_from(const py::object & path) {
    PyObject * bytes = nullptr;
    if (PyUnicode_FSConverter(path.ptr(), &bytes) == 0) {
        throw py::error_already_set();
    }
    return py::reinterpret_steal<py::bytes>(bytes);
}

template <typename Enum> Enum enum_from(const py::object & value, const std::string & where) {
    const auto given = py::cast<std::string>(value);
    std::string allowed;
    size_t i = 0;
    for (const std::string word : names(Enum{})) {
        if (word == given) {
            return static_cast<Enum>(i);
        }
        allowed += (allowed.empty() ? "" : ", ") + word;
        ++i;
    }
    refuse_field(where, "must be one of " + allowed + ", got " + given);
}

template <typename T> void read_fields(const py::dict & dict, const std::string & prefix, T & object);

// What Python gave for a field, `where`, into its member.
template <typename T> void read(const py::object & value, const std::string & where, T & out) {
    if constexpr (std::is_enum_v<T>) {
        out = enum_from<T>(value, where);
    } else if constexpr (has_fields<T>) {
        read_fields(py::cast<py::dict>(value), where + ".", out);
    } else {
        out = py::cast<T>(value);
    }
}

template <typename T> void read(const py::object & value, const std::string & where, T & out, const Range &) {
    read(value, where, out);   // checked where the number of a program in C++ is checked too
}

void read(const py::object & value, const std::string &, std::vector<Span> & out) {
    for (auto & [text, trusted] : py::cast<std::vector<std::pair<std::string, bool>>>(value)) {
        out.push_back({std::move(text), trusted});
    }
}

void read(const py::object & value, const std::string &, std::string & out, PathBytes) {
    out = path_from(value);
}

void read(const py::object & value, const std::string &, std::vector<std::pair<std::string, float>> & out, PathBytes) {
    for (const auto & [path, number] : py::cast<std::vector<std::pair<py::object, float>>>(value)) {
        out.emplace_back(path_from(path), number);
    }
}

// Reads a dict into a struct's fields; what the dict leaves out stays. An unknown key or a wrong type is refused by
// name.
template <typename T> void read_fields(const py::dict & dict, const std::string & prefix, T & object) {
    py::set unknown(dict);
    visit_fields(object, [&](const char * name, auto & member, const auto &... about) {
        if (!dict.contains(name)) {
            return;
        }
        const std::string where = prefix + name;
        const py::object value = dict[name];
        try {
            read(value, where, member, about...);
        } catch (const py::cast_error &) {
            refuse_field(where, "wrong type or out of range: " + std::string(py::repr(value)));
        }
        unknown.attr("discard")(name);
    });
    if (!unknown.empty()) {
        refuse_field(prefix + std::string(py::str(*unknown.begin())), "unknown key");
    }
}

template <typename T> T from_dict(const py::dict & dict) {
    T object;
    read_fields(dict, "", object);
    return object;
}

[[noreturn]] void rest() {
    for (;;) {
        std::this_thread::sleep_for(std::chrono::hours(1));
    }
}

// The GIL, for a thread of the engine. Where the interpreter ends meanwhile, the thread rests as in ReleasedGil.
class AcquiredGil {
  public:
    AcquiredGil() {
        try {
            gil_.emplace();
        } catch (...) {
            rest();
        }
    }

  private:
    std::optional<py::gil_scoped_acquire> gil_;
};

// Throws Error: what a callable did wrong.
[[noreturn]] void refuse_processor(const std::string & why) {
    refuse_field("logits_processor", why);
}

// Python's callable as the engine's threads call it. It raises: the request fails with the exception's words.
LogitsProcessor processor_from(const py::object & callable) {
    if (callable.is_none()) {
        return nullptr;
    }
    const std::shared_ptr<py::object> kept(new py::object(callable), [](py::object * object) {
        const AcquiredGil gil;
        delete object;
    });
    return [kept](const std::vector<Token> & tokens, float * logits, int32_t n_vocab) {
        const AcquiredGil gil;
        try {
            const py::array_t<Token> ids(static_cast<py::ssize_t>(tokens.size()), tokens.data());
            py::array_t<float> values(n_vocab, logits);
            const py::object returned = (*kept)(ids, values);
            if (!returned.is_none()) {
                values = py::cast<py::array_t<float, py::array::c_style | py::array::forcecast>>(returned);
            }
            if (values.ndim() != 1 || values.size() != n_vocab) {
                refuse_processor("must return as many numbers as it was given, " + std::to_string(n_vocab) + ", got " +
                                 std::to_string(values.size()));
            }
            const auto no_logit = [](float x) { return std::isnan(x) || x == std::numeric_limits<float>::infinity(); };
            if (std::any_of(values.data(), values.data() + n_vocab, no_logit)) {
                refuse_processor("gave NaN or infinity; -infinity rules a token out");
            }
            std::copy(values.data(), values.data() + n_vocab, logits);
        } catch (const py::error_already_set & e) {
            const std::string words = e.what();
            refuse_processor(words.substr(0, words.find('\n')));  // without the traceback
        } catch (const py::cast_error &) {
            refuse_processor("must return an array of numbers, or None");
        }
    };
}

// The request of a dict, in which a callable may stand beside what its list of fields has.
Request request_from(py::dict dict) {
    py::object processor = py::none();
    if (dict.contains("logits_processor")) {
        dict = dict.attr("copy")();
        processor = dict.attr("pop")("logits_processor");
    }
    auto request = from_dict<Request>(dict);
    request.logits_processor = processor_from(processor);
    return request;
}

// A struct as a dict, anything else as its like in Python.
template <typename T> std::conditional_t<has_fields<T>, py::dict, py::object> to_python(const T & value);
template <typename T> py::list to_python(const std::vector<T> & items);
template <typename T> py::dict to_python(const std::map<std::string, T> & values);

// Bytes of a stranger's file or of a library's log may be anything.
py::str to_python(const std::string & text) {
    return py::reinterpret_steal<py::str>(
        PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace"));
}

py::str to_python(const std::string & path, PathBytes) {
    return py::reinterpret_steal<py::str>(
        PyUnicode_DecodeFSDefaultAndSize(path.data(), static_cast<Py_ssize_t>(path.size())));
}

py::bytes to_python(const std::string & bytes, RawBytes) {
    return bytes;
}

template <typename T> py::dict to_python(const std::map<std::string, T> & values) {
    py::dict dict;
    for (const auto & [key, value] : values) {
        dict[to_python(key)] = to_python(value);
    }
    return dict;
}

template <typename A, typename B> py::tuple to_python(const std::pair<A, B> & pair) {
    return py::make_tuple(to_python(pair.first), to_python(pair.second));
}

template <typename T> py::list to_python(const std::vector<T> & items) {
    py::list list;
    for (const T & item : items) {
        list.append(to_python(item));
    }
    return list;
}

template <typename T> std::conditional_t<has_fields<T>, py::dict, py::object> to_python(const T & value) {
    if constexpr (has_fields<T>) {
        py::dict dict;
        visit_fields(value, [&](const char * name, const auto & member, const auto &... about) {
            dict[name] = to_python(member, about...);
        });
        return dict;
    } else if constexpr (std::is_enum_v<T>) {
        return py::str(name_of(value));
    } else {
        return py::cast(value);
    }
}

// The fields of a part of Event as properties of the event itself.
template <typename Part> void define_properties(py::class_<Event> & event, Part Event::* part) {
    visit_fields<Part>([&](const char * name, auto member) {
        event.def_property_readonly(name, [part, member](const Event & e) { return e.*part.*member; });
    });
}

// The GIL is given back for as long as this lives. Before Python 3.14 a daemon thread that wants it again while the
// interpreter ends is taken off by pthread_exit(), whose unwinding would end the process at the first function that
// must not throw. Such a thread rests here instead, for the moment that is left.
class ReleasedGil {
  public:
    ReleasedGil() : state_(PyEval_SaveThread()) {}
    ReleasedGil(const ReleasedGil &) = delete;
    ReleasedGil & operator=(const ReleasedGil &) = delete;
    ~ReleasedGil() {
        try {
            PyEval_RestoreThread(state_);
        } catch (...) {
            rest();
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

// The verbs of an engine, here or in another process.
template <typename AnyEngine, typename Holder> void define_verbs(py::class_<AnyEngine, Holder> & bound) {
    bound
        .def(
            "submit",
            [](AnyEngine & engine, const py::dict & request, std::shared_ptr<Outbox> outbox) {
                auto native = request_from(request);
                native.outbox = std::move(outbox);
                const machine::Poll poll = signals();
                return without_gil([&] { return engine.submit(std::move(native), poll); });
            },
            py::arg("request"), py::arg("outbox"))
        .def("outbox", &AnyEngine::outbox, py::arg("quiet") = false, py::arg("rings") = false)
        .def_property_readonly("loading", &AnyEngine::loading)
        .def("listen", &AnyEngine::listen, py::arg("timeout_ms"), py::call_guard<ReleasedGil>())
        .def("cancel", &AnyEngine::cancel, py::arg("id"), py::call_guard<ReleasedGil>())
        .def(
            "compile",
            [](AnyEngine & engine, const py::dict & constraint) {
                const auto native = from_dict<Constraint>(constraint);
                without_gil([&] { engine.compile(native); });
            },
            py::arg("constraint"))
        .def(
            "tokenize",
            [](AnyEngine & engine, const std::vector<std::pair<std::string, bool>> & spans, bool add_bos) {
                std::vector<Span> native;
                for (const auto & [text, trusted] : spans) {
                    native.push_back({text, trusted});
                }
                const machine::Poll poll = signals();
                return without_gil([&] { return engine.tokenize(std::move(native), add_bos, poll); });
            },
            py::arg("spans"), py::arg("add_bos") = true)
        .def(
            "detokenize",
            [](AnyEngine & engine, const std::vector<Token> & tokens, bool special) {
                return py::bytes(without_gil([&] { return engine.detokenize(tokens, special); }));
            },
            py::arg("tokens"), py::arg("special") = true,
            "The bytes that tokens stand for; control tokens by their names, or left out.")
        .def("info", [](AnyEngine & engine) { return to_python(without_gil([&] { return engine.info(); })); })
        .def("stats", [](AnyEngine & engine) { return to_python(without_gil([&] { return engine.stats(); })); })
        .def(
            "drain_log", [](AnyEngine & engine) { return to_python(engine.drain_log()); },
            "What llama.cpp said while it worked for this engine, since the last call: (level as in logging, text).")
        .def("close", &AnyEngine::close, py::call_guard<ReleasedGil>());
}

}  // namespace
}  // namespace pgl

PYBIND11_MODULE(_core, m) {
    using namespace pgl;
    m.doc() =
        "The native border: one engine, the outboxes of its calls, and what can be said of files and this machine.";

    static py::handle error = py::exception<Error>(m, "Error").release();
    error.attr("__doc__") = "A refusal or failure by name: args = (code, message, details).";
    py::register_exception_translator([](std::exception_ptr pointer) {
        try {
            std::rethrow_exception(pointer);
        } catch (const Error & e) {
            if (e.code == "interrupted" && PyErr_Occurred() != nullptr) {
                return;   // what the signal's handler raised
            }
            const py::tuple args = py::make_tuple(e.code, to_python(std::string(e.what())), to_python(e.details));
            PyErr_SetObject(error.ptr(), args.ptr());
        } catch (const std::bad_alloc &) {
            const py::tuple args = py::make_tuple("out_of_memory", "memory ran out", py::dict());
            PyErr_SetObject(error.ptr(), args.ptr());
        }
    });

    py::class_<Event> event(m, "Event");
    event.def_readonly("id", &Event::id)
        .def_property_readonly("kind", [](const Event & e) { return name_of(e.kind); })
        .def_property_readonly("text", [](const Event & e) { return to_python(e.text); })
        .def_property_readonly("mark", [](const Event & e) { return to_python(e.mark); })
        .def_readonly("code", &Event::code)
        .def_property_readonly("details", [](const Event & e) { return to_python(e.details); })
        .def_property_readonly("reason", [](const Event & e) { return name_of(e.reason); })
        .def_readonly("progress", &Event::progress)
        .def_property_readonly("logprobs", [](const Event & e) { return to_python(e.logprobs); })
        .def_property_readonly("prompt_logprobs", [](const Event & e) { return to_python(e.prompt_logprobs); })
        .def_readonly("tokens", &Event::tokens)
        .def_readonly("prompt_tokens", &Event::prompt_tokens)
        .def_property_readonly("stop", [](const Event & e) { return to_python(e.stop); })
        .def_readonly("stop_token", &Event::stop_token)
        .def_property_readonly("embedding", [](const Event & e) -> py::object {
            if (e.kind != EventKind::embedding) {
                return py::none();
            }
            return py::array_t<float>(static_cast<py::ssize_t>(e.embedding.size()), e.embedding.data());
        });
    define_properties(event, &Event::usage);
    define_properties(event, &Event::timings);

    py::class_<Outbox, std::shared_ptr<Outbox>>(m, "Outbox")
        .def_property_readonly("id", &Outbox::id)
        .def("wait", &Outbox::wait, py::arg("timeout_ms"), py::call_guard<ReleasedGil>())
        .def("drain", &Outbox::drain)
        .def("wake", &Outbox::wake, py::call_guard<ReleasedGil>());

    py::class_<Engine, std::unique_ptr<Engine, Engine::Release>> engine(m, "Engine");
    engine.def(py::init([](const py::object & path, const py::dict & options) {
                   return std::unique_ptr<Engine, Engine::Release>(
                       new Engine(path_from(path), from_dict<EngineOptions>(options)));
               }),
               py::arg("path"), py::arg("options"));
    define_verbs(engine);

    py::class_<RemoteEngine, std::unique_ptr<RemoteEngine, RemoteEngine::Release>> remote(m, "RemoteEngine");
    remote.def(py::init([](const py::object & path, const py::dict & options, const py::dict & worker) {
                   return std::unique_ptr<RemoteEngine, RemoteEngine::Release>(new RemoteEngine(
                       path_from(path), from_dict<EngineOptions>(options), from_dict<WorkerProcess>(worker)));
               }),
               py::arg("path"), py::arg("options"), py::arg("worker"),
               "An engine in a process of its own, which was started: `worker` has its id, our ends of its pipes, and "
               "how long it may take.");
    define_verbs(remote);
    remote.def_static(
        "estimate",
        [](const py::object & path, const py::dict & options, const py::dict & worker) {
            std::string file = path_from(path);
            auto native = from_dict<EngineOptions>(options);
            const auto process = from_dict<WorkerProcess>(worker);
            return to_python(
                without_gil([&] { return RemoteEngine::estimate(std::move(file), std::move(native), process); }));
        },
        py::arg("path"), py::arg("options"), py::arg("worker"), "What a model would take of memory, by a dry run.");
    remote.def_property_readonly("crashed", &RemoteEngine::crashed, "It has ended, and nobody asked it to.");

    m.attr("build") = build_id();
    m.def(
        "inspect",
        [](const py::object & path) {
            return to_python(without_gil([file = path_from(path)] { return check_gguf(file); }));
        },
        py::arg("path"), "What a GGUF file says about itself, validated, without loading it.");
    m.def(
        "system",
        [] {
            py::dict dict;
            dict["devices"] = to_python(without_gil([] { return list_devices(); }));
            dict["gpu_problem"] = to_python(without_gil([] { return no_gpu_reason(); }));
            dict["cpu_features"] = cpu_features();
            dict["n_threads"] = machine::usable_threads();
            dict["available_bytes"] = machine::available_bytes();
            dict["kernels"] = kernels::isa();
            dict["build"] = build_id();
            return dict;
        },
        "Devices, CPU features, usable threads and memory of this machine, as this process may use them.");
    m.def(
        "drain_log", [] { return to_python(log::common().drain()); },
        "llama.cpp's log lines that belong to no engine, since the last call: (level as in logging, text).");
}
