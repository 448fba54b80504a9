// Sandbox: what a worker gives up before it opens a stranger's file.
#pragma once

#include <string>

namespace pgl::sandbox {

// Irrevocable, for every thread that this one starts. Where the system can do it (Linux): no file may be written,
// created or run, no process be started or looked into, and no socket be opened. `strict` = false leaves files and
// sockets alone, which the drivers of GPUs need.
void enter(bool strict);

// What is in force in this process: "seccomp, landlock"; "" = nothing.
std::string in_force();

}  // namespace pgl::sandbox
