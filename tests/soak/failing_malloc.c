/* Loaded in front of the C library: the PGL_FAIL_AT-th allocation of this process, and every PGL_FAIL_EVERY-th after it,
   finds no memory. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>

extern void * __libc_malloc(size_t);
extern void * __libc_calloc(size_t, size_t);
extern void * __libc_realloc(void *, size_t);
extern void * __libc_memalign(size_t, size_t);

static atomic_long n_allocations;
static long fail_at = -1, fail_every;

static int fails(void) {
    if (fail_at < 0) {
        const char * at = getenv("PGL_FAIL_AT");
        const char * every = getenv("PGL_FAIL_EVERY");
        fail_at = at ? atol(at) : 0;
        fail_every = every ? atol(every) : 0;
    }
    const long n = atomic_fetch_add(&n_allocations, 1) + 1;
    if (fail_at == 0 || n < fail_at || (n > fail_at && (fail_every == 0 || (n - fail_at) % fail_every != 0))) {
        return 0;
    }
    errno = ENOMEM;
    return 1;
}

void * malloc(size_t size) {
    return fails() ? NULL : __libc_malloc(size);
}
void * calloc(size_t n, size_t size) {
    return fails() ? NULL : __libc_calloc(n, size);
}
void * realloc(void * old, size_t size) {
    return fails() ? NULL : __libc_realloc(old, size);
}
void * memalign(size_t alignment, size_t size) {
    return fails() ? NULL : __libc_memalign(alignment, size);
}
void * aligned_alloc(size_t alignment, size_t size) {
    return fails() ? NULL : __libc_memalign(alignment, size);
}
int posix_memalign(void ** out, size_t alignment, size_t size) {
    if (fails()) {
        return ENOMEM;
    }
    *out = __libc_memalign(alignment, size);
    return *out ? 0 : ENOMEM;
}
