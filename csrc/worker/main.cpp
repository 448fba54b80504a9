// The program of a worker: an engine for the process that started it. Messages come on its standard input and go to its
// standard output; why it ended, if not by itself, goes to its standard error.
#include "llama/last_words.h"
#include "platform/process.h"
#include "worker/serve.h"

#include <cstdio>

#if defined(_WIN32)
#include <fcntl.h>
#include <io.h>
#define dup _dup
#define dup2 _dup2
#else
#include <fcntl.h>
#include <unistd.h>
#endif

// Whatever of Python a library calls here: there is none.
extern "C" [[noreturn]] void pgl_no_python() {
    pgl::last_words("a library called Python, which does not run in a worker");
    pgl::platform::leave(1);
}

int main() {
    pgl::platform::become_worker();
#if defined(_WIN32)
    _setmode(0, _O_BINARY);
    _setmode(1, _O_BINARY);
    const int nothing = _open("NUL", _O_RDWR);
#else
    const int nothing = open("/dev/null", O_RDWR);
#endif
    // What a library prints must not end up among the messages.
    const int in = dup(0), out = dup(1), reason = dup(2);
    for (const int standard : {0, 1, 2}) {
        dup2(nothing, standard);
    }
    pgl::serve(in, out, reason);
}
