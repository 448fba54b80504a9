#include "platform/library.h"

#include "request.h"

#include <filesystem>
#include <system_error>

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace pgl::platform {
namespace {

#ifdef _WIN32
std::wstring wide(const std::string & text) {
    std::wstring out(text.size(), L'\0');
    const int n = MultiByteToWideChar(CP_UTF8, 0, text.data(), static_cast<int>(text.size()), out.data(),
                                      static_cast<int>(out.size()));
    out.resize(n > 0 ? static_cast<size_t>(n) : 0);
    return out;
}
#endif

[[noreturn]] void refuse(const std::string & path, const std::string & why) {
    throw Error("missing_library", path + " cannot be used: " + why, {{"path", path}});
}

}  // namespace

void * symbol_of(const std::string & path, const char * symbol) {
#ifdef _WIN32
    const HMODULE library = LoadLibraryW(wide(path).c_str());
    if (library == nullptr) {
        refuse(path, "error " + std::to_string(GetLastError()));
    }
    void * address = reinterpret_cast<void *>(GetProcAddress(library, symbol));
#else
    void * library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        const char * why = dlerror();
        refuse(path, why != nullptr ? why : "it cannot be loaded");
    }
    void * address = dlsym(library, symbol);
#endif
    if (address == nullptr) {
        refuse(path, std::string("it has no ") + symbol);
    }
    return address;
}

bool is_file(const std::string & path) {
    std::error_code ignored;
    return std::filesystem::is_regular_file(std::filesystem::u8path(path), ignored);
}

std::string own_folder() {
    std::string path;
#ifdef _WIN32
    HMODULE library = nullptr;
    wchar_t name[MAX_PATH];
    if (GetModuleHandleExW(GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT,
                           reinterpret_cast<LPCWSTR>(&own_folder), &library) != 0 &&
        GetModuleFileNameW(library, name, MAX_PATH) < MAX_PATH) {
        path = std::filesystem::path(name).u8string();
    }
#else
    Dl_info about;
    if (dladdr(reinterpret_cast<void *>(&own_folder), &about) != 0 && about.dli_fname != nullptr) {
        path = about.dli_fname;
    }
#endif
    const size_t slash = path.find_last_of("/\\");
    return slash == std::string::npos ? "." : path.substr(0, slash);
}

}  // namespace pgl::platform
