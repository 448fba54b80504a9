#include "platform/machine.h"

#include "request.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <limits>
#include <memory>
#include <mutex>
#include <set>
#include <sstream>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if defined(_WIN32)
#define NOMINMAX
#include <process.h>
#include <windows.h>
#else
#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>
#if defined(__linux__)
#include <sched.h>
#include <sys/mman.h>
#elif defined(__APPLE__)
#include <mach/mach.h>
#include <sys/sysctl.h>
#endif
#endif

namespace pgl::machine {
namespace {

constexpr uint64_t kUnlimited = std::numeric_limits<uint64_t>::max();

std::string read_line(const std::string & path) {
    std::ifstream file(path);
    std::string line;
    std::getline(file, line);
    return line;
}

uint64_t read_limit(const std::string & path) {
    const std::string line = read_line(path);
    if (line.empty() || line[0] < '0' || line[0] > '9') {
        return kUnlimited;  // absent, or "max"
    }
    return std::strtoull(line.c_str(), nullptr, 10);
}

// The directories that hold this process's cgroup limits, innermost first: v2, then v1's per-controller ones.
std::vector<std::string> cgroup_dirs(const std::string & controller) {
    std::vector<std::string> dirs;
    std::ifstream file("/proc/self/cgroup");
    for (std::string line; std::getline(file, line);) {
        const size_t first = line.find(':');
        const size_t second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) {
            continue;
        }
        const std::string controllers = line.substr(first + 1, second - first - 1);
        std::string path = line.substr(second + 1);
        const bool v2 = controllers.empty();
        if (!v2 && ("," + controllers + ",").find("," + controller + ",") == std::string::npos) {
            continue;
        }
        const std::string root = v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/" + controllers;
        for (;;) {  // a limit may sit on any ancestor
            dirs.push_back(root + (path == "/" ? "" : path));
            if (path.empty() || path == "/") {
                break;
            }
            path.erase(path.rfind('/'));
        }
    }
    return dirs;
}

double cpu_quota() {
    double quota = std::numeric_limits<double>::infinity();
    for (const auto & dir : cgroup_dirs("cpu")) {
        std::istringstream v2(read_line(dir + "/cpu.max"));
        double limit = 0, period = 0;
        if (v2 >> limit >> period && limit > 0 && period > 0) {
            quota = std::min(quota, limit / period);
        }
        const uint64_t v1_limit = read_limit(dir + "/cpu.cfs_quota_us");
        const uint64_t v1_period = read_limit(dir + "/cpu.cfs_period_us");
        if (v1_limit != kUnlimited && v1_period != kUnlimited && v1_period > 0) {
            quota = std::min(quota, static_cast<double>(v1_limit) / static_cast<double>(v1_period));
        }
    }
    return quota;
}

int32_t allowed_cores() {
#if defined(__linux__)
    cpu_set_t mask;
    CPU_ZERO(&mask);
    if (sched_getaffinity(0, sizeof mask, &mask) == 0) {
        std::set<std::string> cores;  // SMT siblings share one line
        for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
            if (CPU_ISSET(cpu, &mask)) {
                const std::string id = std::to_string(cpu);
                const std::string siblings =
                    read_line("/sys/devices/system/cpu/cpu" + id + "/topology/thread_siblings_list");
                cores.insert(siblings.empty() ? "cpu" + id : siblings);
            }
        }
        if (!cores.empty()) {
            return static_cast<int32_t>(cores.size());
        }
    }
#elif defined(__APPLE__)
    int32_t n = 0;
    size_t size = sizeof n;
    for (const char * name : {"hw.perflevel0.physicalcpu", "hw.physicalcpu"}) {
        if (sysctlbyname(name, &n, &size, nullptr, 0) == 0 && n > 0) {
            return n;
        }
    }
#endif
    return std::max<int32_t>(1, static_cast<int32_t>(std::thread::hardware_concurrency()));
}

#if defined(__linux__)
uint64_t process_address_space() {
    std::istringstream statm(read_line("/proc/self/statm"));
    uint64_t pages = 0;
    statm >> pages;
    return pages * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}
#endif

}  // namespace

int32_t usable_threads() {
    const double quota = cpu_quota();
    int32_t n = allowed_cores();
    if (quota < n) {
        n = static_cast<int32_t>(std::ceil(quota - 0.05));
    }
    return std::clamp(n, 1, 512);
}

uint64_t resident_bytes() {
#if defined(__linux__)
    std::ifstream statm("/proc/self/statm");
    uint64_t size = 0, resident = 0;
    statm >> size >> resident;
    return resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
#elif defined(__APPLE__)
    mach_task_basic_info_data_t info{};
    mach_msg_type_number_t count = MACH_TASK_BASIC_INFO_COUNT;
    const bool known =
        task_info(mach_task_self(), MACH_TASK_BASIC_INFO, reinterpret_cast<task_info_t>(&info), &count) == KERN_SUCCESS;
    return known ? info.resident_size : 0;
#else
    return 0;
#endif
}

uint64_t available_bytes() {
    uint64_t bytes = kUnlimited;
#if defined(_WIN32)
    MEMORYSTATUSEX status{};
    status.dwLength = sizeof status;
    if (GlobalMemoryStatusEx(&status)) {
        bytes = status.ullAvailPhys;
    }
#elif defined(__APPLE__)
    vm_statistics64_data_t vm{};
    mach_msg_type_number_t count = HOST_VM_INFO64_COUNT;
    if (host_statistics64(mach_host_self(), HOST_VM_INFO64, reinterpret_cast<host_info64_t>(&vm), &count) == 0) {
        bytes = (static_cast<uint64_t>(vm.free_count) + vm.inactive_count + vm.purgeable_count) * vm_page_size;
    }
#else
    std::ifstream meminfo("/proc/meminfo");
    for (std::string line; std::getline(meminfo, line);) {
        if (line.rfind("MemAvailable:", 0) == 0) {
            bytes = std::strtoull(line.c_str() + 13, nullptr, 10) * 1024;
        }
    }
    for (const auto & dir : cgroup_dirs("memory")) {
        for (const auto & [limit_file, usage_file] :
             {std::pair{"/memory.max", "/memory.current"}, {"/memory.limit_in_bytes", "/memory.usage_in_bytes"}}) {
            const uint64_t limit = read_limit(dir + limit_file);
            const uint64_t used = read_limit(dir + usage_file);
            if (limit < (1ULL << 60) && used != kUnlimited) {
                bytes = std::min(bytes, limit - std::min(limit, used));
            }
        }
    }
    rlimit space{};
    if (getrlimit(RLIMIT_AS, &space) == 0 && space.rlim_cur != RLIM_INFINITY) {
        const uint64_t used = process_address_space();
        bytes = std::min<uint64_t>(bytes, space.rlim_cur - std::min<uint64_t>(space.rlim_cur, used));
    }
#endif
    return bytes;
}

namespace {

constexpr auto kPollInterval = std::chrono::milliseconds(50);

// One piece of work on a thread of its own, shared by that thread and whoever waits for it.
struct BackgroundWork {
    explicit BackgroundWork(std::function<void()> work_) : work(std::move(work_)) {}

    std::function<void()> work;
    std::exception_ptr error;
    std::mutex mutex;
    std::condition_variable changed;
    bool done = false;

    void run() {
        try {
            work();
        } catch (...) {
            error = std::current_exception();
        }
        work = nullptr;   // what it owned goes with it, before anybody is told
        const std::lock_guard lock(mutex);
        done = true;
        changed.notify_all();
    }

    void wait() {
        std::unique_lock lock(mutex);
        changed.wait(lock, [this] { return done; });
    }

    void finish() {
        wait();
        if (error) {
            std::rethrow_exception(error);
        }
    }
};

using WorkPtr = std::shared_ptr<BackgroundWork>;

// Calls that their callers left. The static tables that they read must not be taken down under them.
void wait_at_exit(WorkPtr call) {
    static std::mutex mutex;
    static auto * const left = new std::vector<WorkPtr>;
    const std::lock_guard lock(mutex);
    left->erase(std::remove_if(left->begin(), left->end(),
                               [](const WorkPtr & other) {
                                   const std::lock_guard one(other->mutex);
                                   return other->done;
                               }),
                left->end());
    left->push_back(std::move(call));
    static const int registered = std::atexit([] {
        for (const WorkPtr & other : *left) {
            other->wait();
        }
    });
    (void)registered;
}

#if defined(_WIN32)

bool start(uint64_t stack_bytes, const WorkPtr & call) {
    auto * held = new WorkPtr(call);
    const auto body = [](void * data) -> unsigned {
        const std::unique_ptr<WorkPtr> own(static_cast<WorkPtr *>(data));
        return (*own)->run(), 0U;
    };
    const auto size = static_cast<unsigned>(std::min<uint64_t>(stack_bytes, 1U << 30));
    const auto thread =
        reinterpret_cast<HANDLE>(_beginthreadex(nullptr, size, body, held, STACK_SIZE_PARAM_IS_A_RESERVATION, nullptr));
    if (thread == nullptr) {
        delete held;
        return false;
    }
    CloseHandle(thread);
    return true;
}

#else

bool start(uint64_t stack_bytes, const WorkPtr & call) {
    auto * held = new WorkPtr(call);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    if (stack_bytes > 0) {
        pthread_attr_setstacksize(&attributes, static_cast<size_t>((stack_bytes + 65535) & ~uint64_t{65535}));
    }
    pthread_t thread;
    const int status = pthread_create(
        &thread, &attributes,
        [](void * data) -> void * {
            const std::unique_ptr<WorkPtr> own(static_cast<WorkPtr *>(data));
            return (*own)->run(), nullptr;
        },
        held);
    pthread_attr_destroy(&attributes);
    if (status != 0) {
        delete held;
    }
    return status == 0;
}

#endif

WorkPtr begin(uint64_t stack_bytes, std::function<void()> work) {
    const auto call = std::make_shared<BackgroundWork>(std::move(work));
    if (!start(stack_bytes, call)) {
        throw Error("out_of_memory",
                    "no thread with a stack of " + std::to_string(stack_bytes) +
                        " bytes could be started; this process's limits on threads or memory are reached");
    }
    return call;
}

}  // namespace

std::function<void()> start_with_stack(uint64_t stack_bytes, std::function<void()> work) {
    return [call = begin(stack_bytes, std::move(work))] { call->finish(); };
}

void run_with_stack(uint64_t stack_bytes, std::function<void()> work, const Poll & poll) {
    const WorkPtr call = begin(stack_bytes, std::move(work));
    if (poll) {
        std::unique_lock lock(call->mutex);
        while (!call->changed.wait_for(lock, kPollInterval, [&] { return call->done; })) {
            lock.unlock();
            if (poll()) {
                wait_at_exit(call);
                throw Error("interrupted", "the caller left");
            }
            lock.lock();
        }
    }
    call->finish();
}

bool can_start_threads(int32_t n) {
    constexpr int32_t n_spare = 2;   // a thread that has ended is counted a moment longer by the system
    std::mutex gate;
    std::vector<std::thread> threads;
    threads.reserve(static_cast<size_t>(n) + n_spare);
    bool all = true;
    {
        const std::lock_guard closed(gate);   // they all stand here until the last one has been started
        try {
            for (int32_t i = 0; i < n + n_spare; ++i) {
                threads.emplace_back([&gate] { const std::lock_guard pass(gate); });
            }
        } catch (const std::system_error &) {
            all = false;
        }
    }
    for (std::thread & thread : threads) {
        thread.join();
    }
    return all;
}

void release_mapped_pages(const std::string & path) {
#if defined(__linux__)
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
        // begin-end perms offset device inode path
        if (line.size() <= path.size() || line.compare(line.size() - path.size(), path.size(), path) != 0) {
            continue;
        }
        uintptr_t begin = 0, end = 0;
        char dash = 0;
        std::string permissions;
        std::istringstream fields(line);
        fields >> std::hex >> begin >> dash >> end >> permissions;
        if (fields && permissions.size() == 4 && permissions[1] == '-') {  // never written to: nothing to lose
            madvise(reinterpret_cast<void *>(begin), end - begin, MADV_DONTNEED);
        }
    }
#else
    (void)path;
#endif
}

int64_t process_id() {
#if defined(_WIN32)
    return _getpid();
#else
    return getpid();
#endif
}

void lower_priority() {
#if defined(__linux__)
    constexpr int kNice = 10;  // a tenth of what a thread of the usual priority gets
    setpriority(PRIO_PROCESS, 0, kNice);  // Linux counts by thread, whatever the name says
#endif
}

}  // namespace pgl::machine
