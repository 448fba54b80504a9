#include "platform/library.h"

#include "request.h"

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

}  // namespace pgl::platform
