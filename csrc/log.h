// llama.cpp's log, kept in a bounded queue until Python's logging takes it. Never written to a file descriptor.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace pgl::log {

enum Level : int { debug = 10, info = 20, warning = 30, error = 40 };  // Python logging's numbers

// Routes llama.cpp's process-wide log here. Idempotent.
void capture();

// Lines since the last call, oldest first. Past 4,096 unread lines the oldest are dropped and one line says how many.
std::vector<std::pair<int, std::string>> drain();

// While on, this thread's lines are debug: an abort that we asked for is no error, though llama.cpp logs four.
void expect_abort(bool on);

void write(Level level, const std::string & line);

}  // namespace pgl::log
