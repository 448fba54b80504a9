/* What this machine can do at best, for the percentages. Prints three numbers:
 *
 *     read bandwidth in GB/s of all threads together, by the wall clock
 *     int8 multiply-adds in 1e9/s of all threads together
 *     dot instructions per cycle and thread: 1 or 2 on every core known so far, so anything else is a bad measurement
 *
 * usage: machine N_THREADS
 */
#define _GNU_SOURCE
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define MOST_THREADS 256
#define ROUNDS 5
#define PIECE (256u << 20) /* bytes that a thread reads: more than any cache holds */

static double seconds(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Reads every line once and asks for those ahead, as the kernels do: the hardware's prefetcher stops at each page. */
static uint64_t read_all(const char * piece) {
    __m256i sum[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (const char * p = piece; p < piece + PIECE; p += 128) {
        _mm_prefetch(p + 4096, _MM_HINT_T0);
        _mm_prefetch(p + 4096 + 64, _MM_HINT_T0);
        for (int k = 0; k < 4; k++)
            sum[k] = _mm256_xor_si256(sum[k], _mm256_load_si256((const __m256i *)(p + 32 * k)));
    }
    const __m256i all = _mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]), _mm256_xor_si256(sum[2], sum[3]));
    return (uint64_t)_mm256_extract_epi64(all, 0);
}

/* Twelve sums, written out in assembly: nothing goes through memory, and there are enough of them to hide the latency
 * of two instructions a cycle. Where there is no dot instruction, what the kernels use in its place counts as one. */
#if defined(__AVX512VNNI__)
#define LANES 64
typedef __m512i vec;
#define DOT(a) __asm__ volatile("vpdpbusd %1, %2, %0" : "+v"(a) : "v"(x), "v"(y))
#elif defined(__AVXVNNI__)
#define LANES 32
typedef __m256i vec;
#define DOT(a) __asm__ volatile("%{vex%} vpdpbusd %1, %2, %0" : "+x"(a) : "x"(x), "x"(y))
#else
#define LANES 32
typedef __m256i vec;
#define DOT(a) __asm__ volatile("vpmaddubsw %2, %3, %1\n\tvpaddw %1, %0, %0" : "+x"(a), "+x"(t) : "x"(x), "x"(y))
#endif

#define DOTS 120000000L /* in one measurement: some hundredths of a second */
static double dots_per_second(void) {
    vec x = {0}, y = {0}, t = {0}, a = {0}, b = {0}, c = {0}, d = {0}, e = {0}, f = {0};
    vec g = {0}, h = {0}, i = {0}, j = {0}, k = {0}, l = {0};
    (void)t;
    const double start = seconds(CLOCK_THREAD_CPUTIME_ID);
    for (long n = 0; n < DOTS / 12; n++) {
        DOT(a);
        DOT(b);
        DOT(c);
        DOT(d);
        DOT(e);
        DOT(f);
        DOT(g);
        DOT(h);
        DOT(i);
        DOT(j);
        DOT(k);
        DOT(l);
    }
    return DOTS / (seconds(CLOCK_THREAD_CPUTIME_ID) - start);
}

/* Additions that wait for each other take a cycle each. */
#define ADDS 50000000L
static double cycles_per_second(void) {
    const double start = seconds(CLOCK_THREAD_CPUTIME_ID);
    uint64_t x = 0;
    for (long n = 0; n < ADDS / 10; n++)
        __asm__ volatile("add $1, %0\n\tadd $1, %0\n\tadd $1, %0\n\tadd $1, %0\n\tadd $1, %0\n\t"
                         "add $1, %0\n\tadd $1, %0\n\tadd $1, %0\n\tadd $1, %0\n\tadd $1, %0"
                         : "+r"(x));
    return ADDS / (seconds(CLOCK_THREAD_CPUTIME_ID) - start);
}

struct worker {
    pthread_t thread;
    const char * piece;
    double dots, per_cycle; /* per second, at best */
};

static pthread_barrier_t gate; /* of the workers and main: all begin and end each reading together */

static void * work(void * data) {
    struct worker * self = data;
    volatile uint64_t sink = 0;
    for (int round = 0; round < ROUNDS; round++) {
        pthread_barrier_wait(&gate);
        sink ^= read_all(self->piece);
        pthread_barrier_wait(&gate);
        const double before = cycles_per_second(), dots = dots_per_second(), after = cycles_per_second();
        if (dots > self->dots) {
            self->dots = dots;
            self->per_cycle = 2 * dots / (before + after);
        }
    }
    (void)sink;
    return NULL;
}

int main(int argc, char ** argv) {
    const int n_threads = argc > 1 ? atoi(argv[1]) : 1;
    if (n_threads < 1 || n_threads > MOST_THREADS) {
        fprintf(stderr, "usage: %s N_THREADS (1..%d)\n", argv[0], MOST_THREADS);
        return 2;
    }
    static struct worker workers[MOST_THREADS];
    pthread_barrier_init(&gate, NULL, (unsigned)n_threads + 1);
    for (int i = 0; i < n_threads; i++) {
        char * p = mmap(NULL, PIECE + 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            return 1;
        madvise(p, PIECE, MADV_HUGEPAGE);
        for (size_t k = 0; k < PIECE; k += 4096)
            p[k] = (char)k;
        workers[i].piece = p;
        if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0)
            return 1;
    }
    double read_s = 1e9;
    for (int round = 0; round < ROUNDS; round++) {
        pthread_barrier_wait(&gate);
        const double start = seconds(CLOCK_MONOTONIC);
        pthread_barrier_wait(&gate);
        const double s = seconds(CLOCK_MONOTONIC) - start;
        read_s = s < read_s ? s : read_s;
    }
    double dots = 0, per_cycle = 0;
    for (int i = 0; i < n_threads; i++) {
        pthread_join(workers[i].thread, NULL);
        dots += workers[i].dots;
        per_cycle += workers[i].per_cycle / n_threads;
    }
    printf("%.2f %.1f %.2f\n", 1e-9 * PIECE * n_threads / read_s, 1e-9 * dots * LANES, per_cycle);
    return 0;
}
