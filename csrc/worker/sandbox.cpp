#include "worker/sandbox.h"

#if defined(__linux__)
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <vector>
#endif

namespace pgl::sandbox {
namespace {

bool landlocked = false, filtered = false;

#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))

#if defined(__x86_64__)
constexpr uint32_t kArchitecture = AUDIT_ARCH_X86_64;
#else
constexpr uint32_t kArchitecture = AUDIT_ARCH_AARCH64;
#endif

// Landlock (Linux 5.13): rights that are handled and granted nowhere are gone. By number, for the headers of a build
// machine may be older than the kernel of another.
bool give_up_files() {
    constexpr long kCreateRuleset = 444, kRestrictSelf = 446;
    constexpr uint64_t kVersionFlag = 1;
    const long version = syscall(kCreateRuleset, nullptr, 0, kVersionFlag);
    if (version < 1) {
        return false;
    }
    constexpr uint64_t kExecute = 1 << 0, kWriteFile = 1 << 1, kRemoveDir = 1 << 4, kRemoveFile = 1 << 5;
    constexpr uint64_t kMakeAny = 0x1FC0;  // characters, directories, regular files, sockets, pipes, blocks, symlinks
    constexpr uint64_t kRefer = 1 << 13, kTruncate = 1 << 14;  // since versions 2 and 3
    uint64_t handled = kExecute | kWriteFile | kRemoveDir | kRemoveFile | kMakeAny;
    handled |= version >= 2 ? kRefer : 0;
    handled |= version >= 3 ? kTruncate : 0;
    const long ruleset = syscall(kCreateRuleset, &handled, sizeof handled, 0);
    if (ruleset < 0) {
        return false;
    }
    const bool done = syscall(kRestrictSelf, ruleset, 0) == 0;
    close(static_cast<int>(ruleset));
    return done;
}

// A list of calls that fail with EPERM; any other architecture's calls end the process. Threads are started with
// clone() and the flag CLONE_THREAD; clone3(), whose flags no filter can read, does "not exist", and the C library
// falls back to clone().
bool give_up_calls(bool strict) {
    std::vector<uint32_t> refused = {
        __NR_execve,     __NR_execveat,    __NR_ptrace,      __NR_process_vm_readv, __NR_process_vm_writev,
        __NR_kexec_load, __NR_mount,       __NR_umount2,     __NR_pivot_root,       __NR_setns,
        __NR_unshare,    __NR_bpf,         __NR_init_module, __NR_finit_module,     __NR_add_key,
        __NR_keyctl,     __NR_request_key, __NR_userfaultfd, __NR_perf_event_open,
#if defined(__x86_64__)
        __NR_fork,       __NR_vfork,
#endif
    };
    if (strict) {
        for (const uint32_t call : {__NR_socket, __NR_socketpair, __NR_connect, __NR_bind, __NR_listen, __NR_accept,
                                    __NR_accept4, __NR_sendto, __NR_sendmsg, __NR_sendmmsg}) {
            refused.push_back(call);
        }
    }
    const auto jump = [](uint16_t code, uint32_t value, uint8_t if_true, uint8_t if_false) {
        return sock_filter{code, if_true, if_false, value};
    };
    const auto load = [&](size_t offset) {
        return jump(BPF_LD | BPF_W | BPF_ABS, static_cast<uint32_t>(offset), 0, 0);
    };
    const auto end = [&](uint32_t what) { return jump(BPF_RET | BPF_K, what, 0, 0); };
    constexpr uint16_t kEqual = BPF_JMP | BPF_JEQ | BPF_K, kAnyBit = BPF_JMP | BPF_JSET | BPF_K;
    constexpr uint32_t kRefuse = SECCOMP_RET_ERRNO | EPERM;
    std::vector<sock_filter> program = {
        load(offsetof(seccomp_data, arch)),
        jump(kEqual, kArchitecture, 1, 0),
        end(SECCOMP_RET_KILL_PROCESS),
        load(offsetof(seccomp_data, nr)),
        jump(BPF_JMP | BPF_JGE | BPF_K, 0x40000000, 0, 1),  // the same calls by the numbers of x32
        end(SECCOMP_RET_KILL_PROCESS),
        jump(kEqual, 435, 0, 1),  // clone3
        end(SECCOMP_RET_ERRNO | ENOSYS),
        jump(kEqual, __NR_clone, 0, 4),
        load(offsetof(seccomp_data, args[0])),
        jump(kAnyBit, CLONE_THREAD, 1, 0),
        end(kRefuse),
        end(SECCOMP_RET_ALLOW),
    };
    for (const uint32_t call : refused) {
        program.push_back(jump(kEqual, call, 0, 1));
        program.push_back(end(kRefuse));
    }
    program.push_back(end(SECCOMP_RET_ALLOW));
    const sock_fprog filter{static_cast<unsigned short>(program.size()), program.data()};
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

#endif

}  // namespace

void enter(bool strict) {
#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
        return;
    }
    landlocked = strict && give_up_files();
    filtered = give_up_calls(strict);
#else
    (void)strict;
#endif
}

std::string in_force() {
    return filtered && landlocked ? "seccomp, landlock" : filtered ? "seccomp" : landlocked ? "landlock" : "";
}

}  // namespace pgl::sandbox
