// What this machine can do at best, for the percentages: prints read bandwidth in GB/s and int8 dot products in GMAC/s.
#define _GNU_SOURCE
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define PIECE (256u << 20)

// CPU time, so that what else runs on the machine counts little.
static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void * read_all(void * data) {
    const uint64_t * p = data;
    uint64_t s[32] = {0};
    for (size_t i = 0; i < PIECE / 8; i += 32)
        for (int k = 0; k < 32; k++)
            s[k] += p[i + k];
    uint64_t sum = 0;
    for (int k = 0; k < 32; k++)
        sum += s[k];
    return (void *)(uintptr_t)sum;
}

#if defined(__AVX512VNNI__)
#define LANES 64
typedef __m512i vec;
#define DOT(a, x, y) _mm512_dpbusd_epi32(a, x, y)
#define SET1(v) _mm512_set1_epi8(v)
#elif defined(__AVXVNNI__)
#define LANES 32
typedef __m256i vec;
#define DOT(a, x, y) _mm256_dpbusd_avx_epi32(a, x, y)
#define SET1(v) _mm256_set1_epi8(v)
#endif

#define DOTS 200000000L
static void * dot_all(void * data) {
#ifdef LANES
    vec a[16], x = SET1((char)(intptr_t)data), y = SET1(1);
    for (int k = 0; k < 16; k++)
        a[k] = SET1(0);
    for (long i = 0; i < DOTS / 16; i++) {
        for (int k = 0; k < 16; k++)
            a[k] = DOT(a[k], x, y);
        __asm__ volatile("" : "+v"(x));  // or the loop folds into a multiplication
    }
    for (int k = 1; k < 16; k++)
        a[0] = DOT(a[0], a[k], y);
    return (void *)(uintptr_t)(*(int *)a & 1);
#else
    return data;
#endif
}

static double best(void * (*work)(void *), void ** data, int n_threads) {
    double best_s = 1e9;
    for (int round = 0; round < 5; round++) {
        pthread_t thread[256];
        const double start = now();
        for (int i = 0; i < n_threads; i++)
            pthread_create(&thread[i], NULL, work, data[i]);
        for (int i = 0; i < n_threads; i++)
            pthread_join(thread[i], NULL);
        const double s = (now() - start) / n_threads;
        if (s < best_s)
            best_s = s;
    }
    return best_s;
}

int main(int argc, char ** argv) {
    const int n_threads = argc > 1 ? atoi(argv[1]) : 1;
    if (n_threads < 1 || n_threads > 256)
        return 2;
    void * data[256];
    for (int i = 0; i < n_threads; i++) {
        char * p = data[i] = mmap(NULL, PIECE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            return 1;
        madvise(p, PIECE, MADV_HUGEPAGE);
        for (size_t k = 0; k < PIECE; k += 4096)
            p[k] = (char)k;
    }
    const double read_s = best(read_all, data, n_threads);
    const double dot_s = best(dot_all, data, n_threads);
    double lanes = 0;
#ifdef LANES
    lanes = LANES;
#endif
    printf("%.2f %.1f\n", 1e-9 * PIECE * n_threads / read_s, 1e-9 * DOTS * lanes * n_threads / dot_s);
    return 0;
}
