/* Matrix products, threads, and how a processor treats small numbers. */

#pragma once

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "interface.h"

/* Matrix products. A tile of ROWS x 2 vectors stays in registers while its products are summed. */

#if defined(__AVX512F__)
enum { LANES = 16, ROWS = 12 };
#elif defined(__AVX__)
enum { LANES = 8, ROWS = 6 };
#else
enum { LANES = 4, ROWS = 6 };
#endif
enum {
    COLUMNS = 2 * LANES,
    DEPTH =
        256,   /* of a slice: DEPTH x COLUMNS values of the right factor stay in the first cache */
    TERMS = 6, /* at most, of one product */
    QUERIES = 64 /* that attend at a time: scores are QUERIES x T values */
};

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float vec_at __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

static long whole(long n) { return (n + LANES - 1) / LANES * LANES; }

/* left(m, k) = left[m * row + k * step]. right(k, n) = right[k * ld + n]; or, where `packed` is the
   right factor's whole depth, it lies in blocks of COLUMNS columns, one after another, the last
   filled up with zeros: frozen weights do, so that they are read from memory in one stream. */
typedef struct {
    const float *left;
    long row, step;
    const float *right;
    long ld, depth, packed;
} Term;

static inline __attribute__((always_inline)) void tile(
    const int rows, const int vectors, const Term *terms, int n_terms, const float *from,
    long ld_from, float *to, long ld_to) {
    vec sum[ROWS][2];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++)
            if (from) sum[i][j] = *(const vec_at *)(from + i * ld_from + j * LANES);
            else sum[i][j] = (vec){0};
    for (int t = 0; t < n_terms; t++) {
        const float *right = terms[t].right, *left[ROWS / 3];
        const long row = terms[t].row, step = terms[t].step, ld = terms[t].ld;
#pragma GCC unroll 4
        for (int i = 0; i < (rows + 2) / 3; i++) left[i] = terms[t].left + 3 * i * row;
        for (long k = 0; k < terms[t].depth; k++, right += ld) {
            vec r[2];
#pragma GCC unroll 2
            for (int j = 0; j < vectors; j++) r[j] = *(const vec_at *)(right + j * LANES);
#pragma GCC unroll 16
            for (int i = 0; i < rows; i++) /* a pointer for three rows: registers are few */
#pragma GCC unroll 2
                for (int j = 0; j < vectors; j++) sum[i][j] += left[i / 3][i % 3 * row] * r[j];
#pragma GCC unroll 4
            for (int i = 0; i < (rows + 2) / 3; i++) left[i] += step;
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) *(vec_at *)(to + i * ld_to + j * LANES) = sum[i][j];
}

/* `tile` with its sizes known to the compiler. */
static __attribute__((noinline)) void tile_of(
    long rows, int vectors, const Term *terms, int n_terms, const float *from, long ld_from,
    float *to, long ld_to) {
#define CASE(n)                                                                                    \
    case n:                                                                                        \
        if (vectors == 1) tile(n, 1, terms, n_terms, from, ld_from, to, ld_to);                    \
        else tile(n, 2, terms, n_terms, from, ld_from, to, ld_to);                                 \
        break;
    switch (rows) {
        CASE(1)
        CASE(2)
        CASE(3)
        CASE(4) CASE(5) CASE(6)
#if defined(__AVX512F__)
            CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
    }
#undef CASE
}

/* One block of columns, all rows; `width` columns of it are real. Meanwhile `ahead` is fetched. */
static void block(
    long M, long width, const Term *terms, int n_terms, const float *from, long ld_from, float *to,
    long ld_to, const float *ahead, long n_ahead) {
    const int full = width == COLUMNS || width == LANES, vectors = width <= LANES ? 1 : 2;
    Term at[TERMS];
    float copy[2 * DEPTH * COLUMNS], edge[ROWS * COLUMNS], *p = copy;
    for (int t = 0; t < n_terms; t++) {
        at[t] = terms[t];
        /* Copied where a whole vector could not be read, or where rows lie a power of two apart and
           would push one another out of the cache. */
        if (at[t].packed || (full && (at[t].ld % 512 || M < 2 * ROWS))) continue;
        at[t].right = p, at[t].ld = vectors * LANES;
        const float *r = terms[t].right;
        for (long k = 0; k < at[t].depth; k++, r += terms[t].ld, p += at[t].ld) {
            if (full) {
                for (int j = 0; j < vectors; j++)
                    *(vec_at *)(p + j * LANES) = *(const vec_at *)(r + j * LANES);
                continue;
            }
            for (long n = 0; n < width; n++) p[n] = r[n];
            for (long n = width; n < at[t].ld; n++) p[n] = 0;
        }
    }
    const long share = (n_ahead * ROWS / M + LANES) / LANES * LANES;
    for (long m = 0; m < M; m += ROWS) {
        const long rows = M - m < ROWS ? M - m : ROWS;
        for (long i = 0; i < share && n_ahead > 0; i += 16, n_ahead -= 16, ahead += 16)
            __builtin_prefetch(ahead);
        if (full) {
            tile_of(
                rows, vectors, at, n_terms, from ? from + m * ld_from : 0, ld_from, to + m * ld_to,
                ld_to);
        } else {
            tile_of(rows, vectors, at, n_terms, 0, 0, edge, COLUMNS);
            for (long i = 0; i < rows; i++)
                for (long n = 0; n < width; n++)
                    to[(m + i) * ld_to + n] =
                        edge[i * COLUMNS + n] + (from ? from[(m + i) * ld_from + n] : 0);
        }
        for (int t = 0; t < n_terms; t++) at[t].left += rows * at[t].row;
    }
}

/* to = from + sum of terms; from may be `to`, or null for zeros. */
static void product(
    long M, long N, const Term *terms, int n_terms, const float *from, long ld_from, float *to,
    long ld_to) {
    int t = 0;
    long k = 0, first = 1;
    if (M <= 0 || N <= 0) return;
    while (t < n_terms || first) { /* as many terms at a time as add up to two slices */
        Term now[TERMS];
        int n_now = 0;
        long space = 2 * DEPTH;
        while (t < n_terms && n_now < TERMS) {
            long depth = terms[t].depth - k;
            if (depth > DEPTH) depth = DEPTH;
            if (depth > space) break;
            now[n_now] = terms[t];
            now[n_now].left += k * terms[t].step, now[n_now].right += k * terms[t].ld;
            now[n_now++].depth = depth;
            space -= depth, k += depth;
            if (k == terms[t].depth) t++, k = 0;
        }
        for (long n = 0; n < N; n += COLUMNS) {
            Term here[TERMS];
            const float *ahead = 0;
            long n_ahead = 0;
            for (int i = 0; i < n_now; i++) {
                here[i] = now[i];
                here[i].right += now[i].packed ? n * now[i].packed : n;
                if (now[i].packed > n_ahead && n + COLUMNS < N)
                    ahead = here[i].right + COLUMNS * now[i].packed,
                    n_ahead = COLUMNS * now[i].depth;
            }
            const long width = N - n < COLUMNS ? N - n : COLUMNS;
            block(
                M, width, here, n_now, from ? from + n : 0, ld_from, to + n, ld_to, ahead, n_ahead);
        }
        from = to, ld_from = ld_to, first = 0;
    }
}

void lorewright_pack(long K, long N, const float *from, long transposed, float *to) {
    for (long n = 0; n < N; n += COLUMNS)
        for (long k = 0; k < K; k++)
            for (long j = n; j < n + COLUMNS; j++)
                *to++ = j >= N ? 0 : transposed ? from[j * K + k] : from[k * N + j];
}

static Term term(const float *left, long row, const float *right, long ld, long depth) {
    return (Term){left, row, 1, right, ld, depth, 0};
}

static Term frozen(const float *left, long row, const float *packed, long depth) {
    return (Term){left, row, 1, packed, COLUMNS, depth, depth};
}

static Term transposed(const float *left, long ld_left, const float *right, long ld, long depth) {
    return (Term){left, 1, ld_left, right, ld, depth, 0};
}

/* Four vectors of four, transposed. */
typedef float four __attribute__((vector_size(16)));
typedef float four_at __attribute__((vector_size(16), aligned(4), may_alias));
#if defined(__clang__)
#define SHUFFLED(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
typedef int32_t ifour __attribute__((vector_size(16)));
#define SHUFFLED(a, b, i, j, k, l) __builtin_shuffle(a, b, (ifour){i, j, k, l})
#endif

static inline void square(const float *from, long ld, float factor, float *to, long ld_to) {
    const four a = *(const four_at *)from, b = *(const four_at *)(from + ld);
    const four c = *(const four_at *)(from + 2 * ld), d = *(const four_at *)(from + 3 * ld);
    const four ab = SHUFFLED(a, b, 0, 4, 1, 5), ba = SHUFFLED(a, b, 2, 6, 3, 7);
    const four cd = SHUFFLED(c, d, 0, 4, 1, 5), dc = SHUFFLED(c, d, 2, 6, 3, 7);
    *(four_at *)to = SHUFFLED(ab, cd, 0, 1, 4, 5) * factor;
    *(four_at *)(to + ld_to) = SHUFFLED(ab, cd, 2, 3, 6, 7) * factor;
    *(four_at *)(to + 2 * ld_to) = SHUFFLED(ba, dc, 0, 1, 4, 5) * factor;
    *(four_at *)(to + 3 * ld_to) = SHUFFLED(ba, dc, 2, 3, 6, 7) * factor;
}

/* to (N, M) = from (M, N) transposed, times a factor, with so many zeros behind every row. */
static void transpose(
    long M, long N, const float *from, long ld, float factor, float *to, long ld_to, long zeros) {
    const long m_end = M / 4 * 4, n_end = N / 4 * 4;
    for (long m = 0; m < m_end; m += 4)
        for (long n = 0; n < n_end; n += 4)
            square(from + m * ld + n, ld, factor, to + n * ld_to + m, ld_to);
    for (long n = 0; n < N; n++) {
        for (long m = n < n_end ? m_end : 0; m < M; m++)
            to[n * ld_to + m] = factor * from[m * ld + n];
        for (long m = M; m < M + zeros; m++) to[n * ld_to + m] = 0;
    }
}

/* Numbers below 1e-38 take a processor a hundred times as long and mean nothing here: while this
   library computes they count as zero. */

#if defined(__SSE2__)
static unsigned flush(void) {
    const unsigned before = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(before | 0x8040);
    return before;
}
static void restore(unsigned before) { __builtin_ia32_ldmxcsr(before); }
#elif defined(__aarch64__)
static uint64_t flush(void) {
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" ::"r"(before | 1 << 24));
    return before;
}
static void restore(uint64_t before) { __asm__ volatile("msr fpcr, %0" ::"r"(before)); }
#else
static int flush(void) { return 0; }
static void restore(int before) { (void)before; }
#endif

/* Do a job's parts in threads, this one among them; `work` takes parts until none is left. */
static void in_threads(void *(*work)(void *), void *job, long n_threads, long n_parts) {
    pthread_t others[63];
    long n_others = 0, wanted = (n_threads < n_parts ? n_threads : n_parts) - 1;
    while (n_others < wanted && n_others < 63 && !pthread_create(&others[n_others], 0, work, job))
        n_others++;
    work(job);
    for (long i = 0; i < n_others; i++) pthread_join(others[i], 0);
}
