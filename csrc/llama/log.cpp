#include "llama/log.h"

#include <ggml.h>
#include <llama.h>

namespace pgl::log {
namespace {

constexpr size_t kMaxLines = 4096;
constexpr size_t kMaxComplaints = 4;
constexpr size_t kMaxLineBytes = 4096;   // nobody reads further, and a hostile file may hold megabytes

// What this thread writes, and to whom. llama.cpp writes some lines in pieces, never from two threads at once.
struct Writer {
    std::shared_ptr<Queue> queue;
    std::string partial;
    int partial_level = info;
    bool abort_expected = false;
};

thread_local Writer writer;

Queue & target() {
    return writer.queue ? *writer.queue : common();
}

void end_line() {
    target().push(writer.partial_level, std::move(writer.partial));
    writer.partial.clear();
}

void on_llama_log(ggml_log_level level, const char * text, void *) {
    if (level != GGML_LOG_LEVEL_CONT) {
        end_line();
        writer.partial_level = writer.abort_expected           ? debug
                               : level == GGML_LOG_LEVEL_ERROR ? error
                               : level == GGML_LOG_LEVEL_WARN  ? warning
                                                               : debug;  // its "info" is chatter to a host program
    }
    writer.partial += text;
    if (!writer.partial.empty() && writer.partial.back() == '\n') {
        end_line();
    }
}

}  // namespace

void Queue::push(int level, std::string line) {
    while (!line.empty() && (line.back() == '\n' || line.back() == ' ')) {
        line.pop_back();
    }
    if (line.empty()) {
        return;
    }
    for (char & c : line) {   // what a file says must not steer the terminal that shows it
        if (static_cast<unsigned char>(c) < ' ' || c == 0x7f) {
            c = ' ';
        }
    }
    if (line.size() > kMaxLineBytes) {
        line.resize(kMaxLineBytes);
        line += "...";
    }
    const std::lock_guard lock(mutex_);
    if (lines_.size() >= kMaxLines) {
        lines_.pop_front();
        ++n_dropped_;
    }
    if (level >= warning) {
        complaints_.push_back(line);
        if (complaints_.size() > kMaxComplaints) {
            complaints_.pop_front();
        }
    }
    lines_.emplace_back(level, std::move(line));
}

std::vector<std::pair<int, std::string>> Queue::drain() {
    const std::lock_guard lock(mutex_);
    std::vector<std::pair<int, std::string>> lines;
    if (n_dropped_ > 0) {
        lines.emplace_back(warning, std::to_string(n_dropped_) + " log lines were dropped unread");
        n_dropped_ = 0;
    }
    lines.insert(lines.end(), std::make_move_iterator(lines_.begin()), std::make_move_iterator(lines_.end()));
    lines_.clear();
    return lines;
}

std::string Queue::complaint() const {
    const std::lock_guard lock(mutex_);
    std::string text;
    for (const std::string & line : complaints_) {
        text += (text.empty() ? "" : "; ") + line;
    }
    return text;
}

Scope::Scope(std::shared_ptr<Queue> queue) : outer_(std::exchange(writer.queue, std::move(queue))) {}

Scope::~Scope() {
    end_line();
    writer.queue = std::move(outer_);
}

void capture() {
    llama_log_set(on_llama_log, nullptr);
}

Queue & common() {
    static auto * const queue = new Queue;  // never destroyed: ggml may log while the process ends
    return *queue;
}

void expect_abort(bool on) {
    writer.abort_expected = on;
}

void write(Level level, const std::string & line) {
    target().push(level, line);
}

std::string complaint(const std::string & path) {
    std::string text = target().complaint();
    const size_t slash = path.find_last_of("/\\");
    const std::string folder = path.substr(0, slash == std::string::npos ? 0 : slash + 1);
    for (size_t at; !folder.empty() && (at = text.find(folder)) != std::string::npos;) {
        text.erase(at, folder.size());
    }
    return text.empty() ? "it does not say why" : text;
}

}  // namespace pgl::log
