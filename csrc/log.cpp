#include "log.h"

#include <ggml.h>
#include <llama.h>

#include <deque>
#include <mutex>

namespace pgl::log {
namespace {

constexpr size_t kMaxLines = 4096;

// llama.cpp has one logger per process, so this queue is per process too: the one piece of module state.
struct Queue {
    std::mutex mutex;
    std::deque<std::pair<int, std::string>> lines;
    std::string partial;
    int partial_level = info;
    size_t n_dropped = 0;
};

Queue & queue() {
    static auto * const instance = new Queue;  // never destroyed: ggml may log while the process ends
    return *instance;
}

thread_local bool abort_expected = false;

void push(Queue & q, int level, std::string line) {
    while (!line.empty() && (line.back() == '\n' || line.back() == ' ')) {
        line.pop_back();
    }
    if (line.empty()) {
        return;
    }
    if (q.lines.size() >= kMaxLines) {
        q.lines.pop_front();
        ++q.n_dropped;
    }
    q.lines.emplace_back(level, std::move(line));
}

void on_llama_log(ggml_log_level level, const char * text, void *) {
    Queue & q = queue();
    const std::lock_guard lock(q.mutex);
    if (level != GGML_LOG_LEVEL_CONT) {
        push(q, q.partial_level, std::move(q.partial));
        q.partial.clear();
        q.partial_level = abort_expected                ? debug
                        : level == GGML_LOG_LEVEL_ERROR ? error
                        : level == GGML_LOG_LEVEL_WARN  ? warning
                                                        : debug;  // its "info" is chatter to a host program
    }
    q.partial += text;
    if (!q.partial.empty() && q.partial.back() == '\n') {
        push(q, q.partial_level, std::move(q.partial));
        q.partial.clear();
    }
}

}  // namespace

void capture() {
    llama_log_set(on_llama_log, nullptr);
}

std::vector<std::pair<int, std::string>> drain() {
    Queue & q = queue();
    const std::lock_guard lock(q.mutex);
    std::vector<std::pair<int, std::string>> lines;
    if (q.n_dropped > 0) {
        lines.emplace_back(warning, std::to_string(q.n_dropped) + " log lines were dropped unread");
        q.n_dropped = 0;
    }
    lines.insert(lines.end(), std::make_move_iterator(q.lines.begin()), std::make_move_iterator(q.lines.end()));
    q.lines.clear();
    return lines;
}

void expect_abort(bool on) {
    abort_expected = on;
}

void write(Level level, const std::string & line) {
    Queue & q = queue();
    const std::lock_guard lock(q.mutex);
    push(q, level, line);
}

}  // namespace pgl::log
