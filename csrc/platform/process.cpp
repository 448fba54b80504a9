#include "platform/process.h"

#include <chrono>
#include <fstream>
#include <thread>

#if defined(_WIN32)
#define NOMINMAX
#include <windows.h>
#else
#include <csignal>
#include <cstring>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

namespace pgl::platform {

#if defined(_WIN32)

Ending ending_of(int64_t process, int32_t timeout_ms) {
    const auto handle = reinterpret_cast<HANDLE>(process);
    DWORD status = 0;
    if (WaitForSingleObject(handle, static_cast<DWORD>(timeout_ms)) != WAIT_OBJECT_0 ||
        !GetExitCodeProcess(handle, &status)) {
        return {};
    }
    return {true, 0, "ended with status " + std::to_string(status)};
}

void kill(int64_t process) {
    TerminateProcess(reinterpret_cast<HANDLE>(process), 1);
}

void become_worker() {
    SetErrorMode(SEM_FAILCRITICALERRORS | SEM_NOGPFAULTERRORBOX);
    SetConsoleCtrlHandler(nullptr, TRUE);
}

void limit_memory(uint64_t) {}

bool orphaned() {
    return false;   // its pipe tells it
}

void leave(int status) {
    TerminateProcess(GetCurrentProcess(), static_cast<UINT>(status));
    std::abort();
}

#else

namespace {

pid_t parent_at_start() {
    static const pid_t parent = getppid();
    return parent;
}

}  // namespace

Ending ending_of(int64_t process, int32_t timeout_ms) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
    for (;;) {
        siginfo_t info{};
        const int rc = waitid(P_PID, static_cast<id_t>(process), &info, WEXITED | WNOHANG | WNOWAIT);
        if (rc != 0) {
            return {true, 0, "ended"};   // somebody else has waited for it
        }
        if (info.si_pid != 0) {
            if (info.si_code == CLD_EXITED) {
                return {true, 0, "ended with status " + std::to_string(info.si_status)};
            }
            const char * name = strsignal(info.si_status);
            return {true, info.si_status,
                    "was killed by signal " + std::to_string(info.si_status) + " (" +
                        (name != nullptr ? name : "unknown") + ")"};
        }
        if (std::chrono::steady_clock::now() >= deadline) {
            return {};
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
}

void kill(int64_t process) {
    ::kill(static_cast<pid_t>(process), SIGKILL);
}

void become_worker() {
    parent_at_start();
    for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGUSR1, SIGUSR2}) {
        ::signal(signal, SIG_IGN);
    }
    const rlimit none{0, 0};
    setrlimit(RLIMIT_CORE, &none);
    std::ofstream("/proc/self/oom_score_adj") << 800;
}

void limit_memory(uint64_t bytes) {
    const rlimit limit{static_cast<rlim_t>(bytes), static_cast<rlim_t>(bytes)};
    setrlimit(RLIMIT_DATA, &limit);
}

bool orphaned() {
    return getppid() != parent_at_start();
}

void leave(int status) {
    _exit(status);
}

#endif

}  // namespace pgl::platform
