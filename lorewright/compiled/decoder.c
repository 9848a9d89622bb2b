/* A Llama-like decoder with LoRA adapters: forward, and backward to A and B, in one call each.

   Python's side is compiled.py, which fills these structures, owns every buffer and compiles this
   file; fused.py has the same arithmetic in torch, and the tests hold the two against each other.
   Work is cut into parts: rows of the batch that use one adapter. A part goes through all layers by
   itself, on one thread, in a workspace of its own, so its numbers depend on nothing beside it.

   Names: M tokens of a part, Q positions asked for, T tokens a row, D width, F inner width, H query
   heads, G key heads, E width of a head, I in-features, O out-features, R rank. Matrices are
   row-major float32. */

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

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
    DEPTH = 256, /* of a slice: DEPTH x COLUMNS values of the right factor stay in the first cache */
    TERMS = 6,   /* at most, of one product */
    QUERIES = 64 /* that attend at a time: scores are QUERIES x T values */
};

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float vec_at __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

static long whole(long n) { return (n + LANES - 1) / LANES * LANES; }

/* left(m, k) = left[m * row + k * step]. right(k, n) = right[k * ld + n]; or, where `panels` is the
   right factor's whole depth, it lies in panels of COLUMNS columns, one after another, the last
   filled up with zeros: frozen weights do, so that they are read from memory in one stream. */
typedef struct {
    const float *left;
    long row, step;
    const float *right;
    long ld, depth, panels;
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

static __attribute__((noinline)) void tile_of(
    long rows, int vectors, const Term *terms, int n_terms, const float *from, long ld_from,
    float *to, long ld_to) {
#define CASE(n)                                                                  \
    case n:                                                                      \
        if (vectors == 1) tile(n, 1, terms, n_terms, from, ld_from, to, ld_to);  \
        else tile(n, 2, terms, n_terms, from, ld_from, to, ld_to);               \
        break;
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if defined(__AVX512F__)
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
    }
#undef CASE
}

/* One panel of columns, all rows; `width` columns of it are real. Meanwhile `ahead` is fetched. */
static void panel(
    long M, long width, const Term *terms, int n_terms, const float *from, long ld_from, float *to,
    long ld_to, const float *ahead, long n_ahead) {
    const int whole = width == COLUMNS || width == LANES, vectors = width <= LANES ? 1 : 2;
    Term at[TERMS];
    float copy[2 * DEPTH * COLUMNS], edge[ROWS * COLUMNS], *p = copy;
    for (int t = 0; t < n_terms; t++) {
        at[t] = terms[t];
        /* Copied where a whole vector could not be read, or where rows lie a power of two apart and
           would push one another out of the cache. */
        if (at[t].panels || (whole && (at[t].ld % 512 || M < 2 * ROWS))) continue;
        at[t].right = p, at[t].ld = vectors * LANES;
        const float *r = terms[t].right;
        for (long k = 0; k < at[t].depth; k++, r += terms[t].ld, p += at[t].ld) {
            if (whole) {
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
        if (whole) {
            tile_of(rows, vectors, at, n_terms, from ? from + m * ld_from : 0, ld_from,
                    to + m * ld_to, ld_to);
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
        long room = 2 * DEPTH;
        while (t < n_terms && n_now < TERMS) {
            long depth = terms[t].depth - k;
            if (depth > DEPTH) depth = DEPTH;
            if (depth > room) break;
            now[n_now] = terms[t];
            now[n_now].left += k * terms[t].step, now[n_now].right += k * terms[t].ld;
            now[n_now++].depth = depth;
            room -= depth, k += depth;
            if (k == terms[t].depth) t++, k = 0;
        }
        for (long n = 0; n < N; n += COLUMNS) {
            Term here[TERMS];
            const float *ahead = 0;
            long n_ahead = 0;
            for (int i = 0; i < n_now; i++) {
                here[i] = now[i];
                here[i].right += now[i].panels ? n * now[i].panels : n;
                if (now[i].panels > n_ahead && n + COLUMNS < N)
                    ahead = here[i].right + COLUMNS * now[i].panels,
                    n_ahead = COLUMNS * now[i].depth;
            }
            const long width = N - n < COLUMNS ? N - n : COLUMNS;
            panel(M, width, here, n_now, from ? from + n : 0, ld_from, to + n, ld_to, ahead, n_ahead);
        }
        from = to, ld_from = ld_to, first = 0;
    }
}

/* A frozen matrix (K, N), or the turned (N, K), into panels. */
void lorewright_panels(long K, long N, const float *from, long is_turned, float *to) {
    for (long n = 0; n < N; n += COLUMNS)
        for (long k = 0; k < K; k++)
            for (long j = n; j < n + COLUMNS; j++)
                *to++ = j >= N ? 0 : is_turned ? from[j * K + k] : from[k * N + j];
}

static Term term(const float *left, long row, const float *right, long ld, long depth) {
    return (Term){left, row, 1, right, ld, depth, 0};
}

static Term frozen(const float *left, long row, const float *panels, long depth) {
    return (Term){left, row, 1, panels, COLUMNS, depth, depth};
}

static Term turned(const float *left, long ld_left, const float *right, long ld, long depth) {
    return (Term){left, 1, ld_left, right, ld, depth, 0};
}

/* Four vectors of four, turned. */
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

/* to (N, M) = from (M, N) turned, times a factor, with so many zeros behind every row. */
static void transpose(
    long M, long N, const float *from, long ld, float factor, float *to, long ld_to, long zeros) {
    const long m_end = M / 4 * 4, n_end = N / 4 * 4;
    for (long m = 0; m < m_end; m += 4)
        for (long n = 0; n < n_end; n += 4)
            square(from + m * ld + n, ld, factor, to + n * ld_to + m, ld_to);
    for (long n = 0; n < N; n++) {
        for (long m = n < n_end ? m_end : 0; m < M; m++) to[n * ld_to + m] = factor * from[m * ld + n];
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

/* Functions of single values. */

static inline vec pick(ivec where, vec yes, vec no) {
    return (vec)((where & (ivec)yes) | (~where & (ivec)no));
}

/* e^x to two units in the last place (Cephes' polynomial); not a number stays so. */
static inline vec exp_of(vec x) {
    const vec low = (vec){0} - 87.0f, high = (vec){0} + 88.0f;
    x = pick(x < low, low, x);
    x = pick(x > high, high, x);
    const vec twos = x * 1.44269504f, half = (vec){0} + 0.5f;
    const ivec whole = __builtin_convertvector(twos + pick(twos < 0, -half, half), ivec);
    const vec n = __builtin_convertvector(whole, vec);
    vec r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vec p = (vec){0} + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (vec)((whole + 127) << 23);
}

static inline float total(vec x) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
}

/* x = exp(x - most) for n values; their sum. */
static float exps(float *x, long n, float most) {
    vec sum = {0};
    long i = 0;
    for (; i + LANES <= n; i += LANES) {
        const vec e = exp_of(*(vec_at *)(x + i) - most);
        *(vec_at *)(x + i) = e, sum += e;
    }
    if (i < n) {
        vec rest = (vec){0} - 1e30f, e;
        memcpy(&rest, x + i, (n - i) * sizeof(float));
        e = exp_of(rest - most);
        memcpy(x + i, &e, (n - i) * sizeof(float));
        for (long j = 0; j < n - i; j++) sum[0] += e[j];
    }
    return total(sum);
}

static float largest(const float *x, long n) {
    float most = x[0];
    for (long i = 1; i < n; i++) most = x[i] > most ? x[i] : most;
    return most;
}

/* SwiGLU: open = silu(gate) * up. Or, with `grad` of that, gate and up become their gradients. */
static void swiglu(long n, float *gate, float *up, const float *grad, float *open) {
    for (long i = 0; i < n; i += LANES) {
        vec g = {0}, u = {0}, d = {0};
        const int whole = n - i >= LANES;
        const long bytes = (n - i) * sizeof(float);
        if (whole) {
            g = *(vec_at *)(gate + i), u = *(vec_at *)(up + i);
            if (grad) d = *(const vec_at *)(grad + i);
        } else {
            memcpy(&g, gate + i, bytes), memcpy(&u, up + i, bytes);
            if (grad) memcpy(&d, grad + i, bytes);
        }
        const vec share = 1.0f / (1.0f + exp_of(-g)), silu = g * share, o = silu * u;
        if (!grad) {
            if (whole) *(vec_at *)(open + i) = o;
            else memcpy(open + i, &o, bytes);
            continue;
        }
        const vec du = d * silu, dg = d * u * share * (1.0f + g - silu);
        if (whole) *(vec_at *)(gate + i) = dg, *(vec_at *)(up + i) = du;
        else memcpy(gate + i, &dg, bytes), memcpy(up + i, &du, bytes);
    }
}

/* RMS norms of M vectors of D values. */

typedef struct {
    const float *weight;
    float eps;
} Norm;

static inline float inverse_of(const float *x, long D, float eps) {
    float square = 0;
    for (long d = 0; d < D; d++) square += x[d] * x[d];
    return 1.0f / sqrtf(square / D + eps);
}

static void norm(long M, long D, const float *x, long ld, Norm by, float *h, long ld_h) {
    for (long m = 0; m < M; m++, x += ld, h += ld_h) {
        const float inverse = inverse_of(x, D, by.eps);
        for (long d = 0; d < D; d++) h[d] = x[d] * inverse * by.weight[d];
    }
}

/* grad of h becomes the gradient of x, plus `rest` where there is one. */
static void norm_back(
    long M, long D, const float *x, long ld, Norm by, float *grad, long ld_g, const float *rest) {
    for (long m = 0; m < M; m++, x += ld, grad += ld_g) {
        const float inverse = inverse_of(x, D, by.eps);
        float along = 0;
        for (long d = 0; d < D; d++) along += grad[d] * by.weight[d] * x[d];
        along *= inverse * inverse / D;
        for (long d = 0; d < D; d++) grad[d] = (grad[d] * by.weight[d] - x[d] * along) * inverse;
        if (rest)
            for (long d = 0; d < D; d++) grad[d] += rest[m * D + d];
    }
}

/* The network. */

typedef struct {
    long n_out;
    const float *up, *down, *bias; /* W' (I, O) and W (O, I) in panels; (O) or null */
    long rank;                           /* of A and B as stored; 0: not adapted */
    const long *rank_N;                  /* what each adapter uses of it */
    const float *A, *B;                  /* (N, R, I), (N, O, R), adapters `stride` values apart */
    long stride_A, stride_B;
    long at_A, at_B; /* where their gradients lie among a part's */
} Linear;

typedef struct {
    Linear query, memory[2], output, widen[2], narrow;
    Norm before, after, of_query, of_key; /* the last two without weight where heads have no norm */
    int attends, below; /* is there an adapter: in q, k or v; in a layer below */
} Layer;

typedef struct {
    long D, F, H, G, E, n_layers;
    const Layer *layers;
    Norm last;
    const float *cos, *sin; /* (positions, E/2), with the root of attention's scale in them */
    const float *scale_N;
} Decoder;

typedef struct {
    long T, C;           /* tokens and positions asked for of the longest row */
    long first, end;     /* layers that run; where none is asked for, `out` is what leaves the last */
    const float *x;      /* (rows, T, D) what enters */
    const long *lengths; /* of each row, how many of its T tokens are needed */
    const long *counts;  /* of each row, how many of its C positions are asked for; null: none */
    const long *asked;   /* (rows, C) positions */
    float *out;          /* (rows, C, D), or (rows, T, D) */
    const float *grad;   /* of `out` */
    long keep;
} Pass;

typedef struct {
    long row, n_rows, adapter; /* -1: none */
    long shared;               /* tokens with which all its rows begin: they are computed once */
    float *work, *grads;
} Part;

/* Where a part's tokens and queries lie: first the shared tokens, then each row's own. */
typedef struct {
    long M, Q, longest;
    long shares[2]; /* of a head: how many attention has, of all queries and of those asked for */
    long *own, *token, *count, *query; /* a row's own tokens, the first; its queries, the first */
} Layout;

/* A part's values in one layer. */
typedef struct {
    float *x, *h, *hq, *q, *k, *v, *raw_q, *raw_k, *share, *attended, *mid, *late, *gate, *up, *open;
    float *inner_q, *inner_m, *inner_o, *inner_w, *inner_n;
} Kept;

/* Columns for the ranks of some linear layers, of which each begins at a whole vector. */
static long ranks(const Linear *linears, int n) {
    long sum = 0;
    for (int i = 0; i < n; i++) sum += whole(linears[i].rank);
    return sum;
}

static float *take(float **at, long n) {
    float *here = *at;
    *at += (n + 15) / 16 * 16;
    return here;
}

/* The part's layout; its arrays are taken from `at`. */
static Layout layout(const Pass *pass, const Part *part, float **at) {
    const long n = part->n_rows;
    long *all = (long *)take(at, 8 * n);
    const long shared = part->shared;
    Layout found = {.M = shared, .own = all, .token = all + n, .count = all + 2 * n,
                    .query = all + 3 * n, .shares = {shared * whole(shared)}};
    for (long b = 0; b < n; b++) {
        const long row = part->row + b, length = pass->lengths[row];
        found.own[b] = length > part->shared ? length - part->shared : 0, found.token[b] = found.M, found.M += found.own[b];
        found.count[b] = pass->counts ? pass->counts[row] : 0;
        found.query[b] = found.Q, found.Q += found.count[b];
        found.longest = length > found.longest ? length : found.longest;
        const long seen = whole(shared + found.own[b]);
        found.shares[0] += found.own[b] * seen, found.shares[1] += found.count[b] * seen;
    }
    if (found.longest > QUERIES) found.shares[0] = found.shares[1] = 0; /* many: made anew */
    return found;
}

/* Lays out a layer's values from `at` on, which moves behind them. */
static Kept lay(const Decoder *net, const Layer *layer, const Layout *part, int apart, float **at) {
    const long D = net->D, F = net->F, HE = net->H * net->E, GE = net->G * net->E;
    const long M = part->M, Q = apart ? part->Q : part->M;
    Kept kept;
    kept.x = take(at, M * D), kept.h = take(at, M * D);
    kept.hq = apart ? take(at, Q * D) : kept.h;
    kept.q = take(at, Q * HE), kept.k = take(at, M * GE), kept.v = take(at, M * GE);
    kept.raw_q = layer->of_query.weight ? take(at, Q * HE) : 0;
    kept.raw_k = layer->of_key.weight ? take(at, M * GE) : 0;
    kept.share = part->shares[0] ? take(at, net->H * part->shares[apart]) : 0;
    kept.attended = take(at, Q * HE), kept.mid = take(at, Q * D), kept.late = take(at, Q * D);
    kept.gate = take(at, Q * F), kept.up = take(at, Q * F), kept.open = take(at, Q * F);
    kept.inner_q = take(at, Q * ranks(&layer->query, 1));
    kept.inner_m = take(at, M * ranks(layer->memory, 2));
    kept.inner_o = take(at, Q * ranks(&layer->output, 1));
    kept.inner_w = take(at, Q * ranks(layer->widen, 2));
    kept.inner_n = take(at, Q * ranks(&layer->narrow, 1));
    return kept;
}

/* Values beside the kept ones that a layer needs while it runs; M tokens or queries, T of one row. */
static long scratch(const Decoder *net, const Layer *layer, long M, long T, int back) {
    const long D = net->D, F = net->F, HE = net->H * net->E, GE = net->G * net->E, W = whole(T);
    const long wide = HE > F ? HE : F, most = wide > D ? wide : D;
    const long all[] = {ranks(&layer->query, 1), ranks(layer->memory, 2), ranks(&layer->output, 1),
                        ranks(layer->widen, 2), ranks(&layer->narrow, 1)};
    long rank = 0;
    for (int i = 0; i < 5; i++) rank = all[i] > rank ? all[i] : rank;
    const long n = rank * most + M * F + (2 * QUERIES + 2 * net->E) * W + 64 * 16;
    return back ? n + M * (rank + 2 * D + 2 * HE + 2 * GE) : n;
}

/* to (n, whole vector) = from (n, stored), of whose columns only `rank` are read. */
static void widened(long n, long rank, const float *from, long stored, float *to) {
    const long wide = whole(rank);
    for (long i = 0; i < n; i++) {
        for (long j = 0; j < rank; j++) to[i * wide + j] = from[i * stored + j];
        for (long j = rank; j < wide; j++) to[i * wide + j] = 0;
    }
}

/* Linear layers of one input with adapter n on them; inner = scale A x is kept for the way back. */
static void linears(
    const Linear *all, int n, long M, long I, const float *x, long adapter, float scale,
    const float *from, float **outs, float *inner, float *work) {
    const long R = ranks(all, n);
    float *matrix = work;
    long r = 0;
    for (int i = 0; i < n; i++) {
        const Linear *one = all + i;
        const long O = one->n_out, rank = adapter >= 0 && one->rank ? one->rank_N[adapter] : 0;
        Term terms[2] = {frozen(x, I, one->up, I)};
        if (rank) {
            const float *A = one->A + adapter * one->stride_A, *B = one->B + adapter * one->stride_B;
            transpose(rank, I, A, I, scale, matrix, whole(rank), whole(rank) - rank);
            const Term in = term(x, I, matrix, whole(rank), I);
            product(M, whole(rank), &in, 1, 0, 0, inner + r, R);
            transpose(O, rank, B, one->rank, 1, matrix, O, 0);
            terms[1] = term(inner + r, R, matrix, O, rank);
        }
        const float *start = from;
        if (one->bias) {
            for (long m = 0; m < M; m++)
                for (long o = 0; o < O; o++)
                    outs[i][m * O + o] = one->bias[o] + (from ? from[m * O + o] : 0);
            start = outs[i];
        }
        product(M, O, terms, rank ? 2 : 1, start, O, outs[i], O);
        r += whole(one->rank);
    }
}

/* Gradients of A, B and, unless null, of the input: to = from + ... */
static void linears_back(
    const Linear *all, int n, long M, long I, float *const *grads, const float *x,
    const float *inner, long adapter, float scale, const float *from, float *to, float *found,
    float *work) {
    const long R = ranks(all, n);
    float *back = take(&work, M * R), *matrix = work;
    Term terms[2 * 2];
    int n_terms = 0;
    long r = 0;
    for (int i = 0; i < n; i++) {
        const Linear *one = all + i;
        const long O = one->n_out, full = one->rank;
        const long rank = adapter >= 0 && full ? one->rank_N[adapter] : 0;
        terms[n_terms++] = frozen(grads[i], O, one->down, O);
        if (full && adapter >= 0) {
            float *at_A = found + one->at_A, *at_B = found + one->at_B;
            const float *A = one->A + adapter * one->stride_A;
            if (rank < full) memset(at_B, 0, O * full * sizeof(float));
            memset(at_A + rank * I, 0, (full - rank) * I * sizeof(float));
            widened(O, rank, one->B + adapter * one->stride_B, full, matrix);
            const Term out = term(grads[i], O, matrix, whole(rank), O);
            product(M, whole(rank), &out, 1, 0, 0, back + r, R);
            for (long m = 0; m < M; m++)
                for (long j = 0; j < whole(rank); j++) back[m * R + r + j] *= scale;
            const Term of_B = turned(inner + r, R, grads[i], O, M);
            product(rank, O, &of_B, 1, 0, 0, matrix, O);
            for (long o = 0; o < O; o++)
                for (long j = 0; j < rank; j++) at_B[o * full + j] = matrix[j * O + o];
            const Term of_A = turned(back + r, R, x, I, M);
            product(rank, I, &of_A, 1, 0, 0, at_A, I);
            if (rank) terms[n_terms++] = term(back + r, R, A, I, rank);
        }
        r += whole(full);
    }
    if (to) product(M, I, terms, n_terms, from, I, to, I);
}

/* Rotary positions: pairs (e, e + E/2) of n heads turned by their position's angle, or back. */
static void rotate(const Decoder *net, float *x, long n_heads, long position, int back) {
    const long half = net->E / 2;
    const float *cos = net->cos + position * half, *sin = net->sin + position * half;
    const float sign = back ? -1 : 1;
    for (long h = 0; h < n_heads; h++, x += net->E)
        for (long e = 0; e < half; e++) {
            const float one = x[e], two = x[e + half], s = sign * sin[e];
            x[e] = one * cos[e] - two * s;
            x[e + half] = two * cos[e] + one * s;
        }
}

/* How far queries see. */
static long reach(const long *position, long n) {
    long end = 0;
    for (long i = 0; i < n; i++) end = position[i] + 1 > end ? position[i] + 1 : end;
    return end;
}

/* Shares of QUERIES queries at most, zero after each one's position; how many columns (of W, a whole
   number of vectors) anything is seen in. Keys are turned: (E, W). */
static long shares(
    const Decoder *net, long n, const long *position, const float *q, const float *keys_EW, long W,
    float *share) {
    const long end = reach(position, n);
    const Term scores = term(q, net->H * net->E, keys_EW, W, net->E);
    product(n, whole(end), &scores, 1, 0, 0, share, W);
    for (long i = 0; i < n; i++) {
        float *s = share + i * W;
        const long seen = position[i] + 1;
        const float part = 1 / exps(s, seen, largest(s, seen));
        for (long t = 0; t < seen; t++) s[t] *= part;
        for (long t = seen; t < whole(end); t++) s[t] = 0;
    }
    return end;
}

/* What queries of one row see: the part's shared tokens, then the row's own; (tokens, G, E) each. */
typedef struct {
    long shared, own;
    const float *k_shared, *v_shared, *k, *v;
    float *grad_k_shared, *grad_v_shared, *grad_k, *grad_v; /* added to */
    float *share; /* kept shares (H, queries, W), or null */
} Seen;

/* A head's keys or values, turned: (E, W). */
static void turned_of(
    const Decoder *net, const Seen *seen, const float *shared, const float *own, long g, float *to_EW) {
    const long E = net->E, GE = net->G * E, T = seen->shared + seen->own, W = whole(T);
    transpose(seen->shared, E, shared + g * E, GE, 1, to_EW, W, 0);
    transpose(seen->own, E, own + g * E, GE, 1, to_EW + seen->shared, W, W - T);
}

/* to (n, E) = weights (n, tokens) times a head's keys or values. */
static void mix(
    const Decoder *net, const Seen *seen, long n, long end, const float *weight, const float *shared,
    const float *own, long g, float *to) {
    const long E = net->E, GE = net->G * E, W = whole(seen->shared + seen->own);
    const long before = end < seen->shared ? end : seen->shared;
    const Term both[2] = {term(weight, W, shared + g * E, GE, before),
                          term(weight + before, W, own + g * E, GE, end - before)};
    product(n, E, before ? both : both + 1, before && end > before ? 2 : 1, 0, 0, to, net->H * E);
}

/* Gradients of a head's keys or values: += weights' (tokens, n) times x (n, E). */
static void unmix(
    const Decoder *net, const Seen *seen, long n, long end, const float *weight, const float *x,
    float *shared, float *own, long g) {
    const long E = net->E, GE = net->G * E, W = whole(seen->shared + seen->own);
    const long before = end < seen->shared ? end : seen->shared;
    const Term to_shared = turned(weight, W, x, net->H * E, n);
    const Term to_own = turned(weight + before, W, x, net->H * E, n);
    product(before, E, &to_shared, 1, shared + g * E, GE, shared + g * E, GE);
    product(end - before, E, &to_own, 1, own + g * E, GE, own + g * E, GE);
}

/* Causal attention of n_queries (H, E) at `position`. */
static void attend(
    const Decoder *net, const Seen *seen, long n_queries, const long *position, const float *q,
    float *out, float *work) {
    const long E = net->E, HE = net->H * E, per = net->H / net->G;
    const long W = whole(seen->shared + seen->own);
    float *keys_EW = take(&work, E * W), *made = take(&work, QUERIES * W);
    for (long g = 0; g < net->G; g++) {
        turned_of(net, seen, seen->k_shared, seen->k, g, keys_EW);
        for (long h = g * per; h < (g + 1) * per; h++)
            for (long c = 0; c < n_queries; c += QUERIES) {
                const long n = n_queries - c < QUERIES ? n_queries - c : QUERIES, at = c * HE + h * E;
                float *share = seen->share ? seen->share + h * n * W : made;
                const long end = shares(net, n, position + c, q + at, keys_EW, W, share);
                mix(net, seen, n, end, share, seen->v_shared, seen->v, g, out + at);
            }
    }
}

/* Gradients of q, and of keys and values, from that of what was attended. */
static void attend_back(
    const Decoder *net, const Seen *seen, long n_queries, const long *position, const float *q,
    const float *grad, float *grad_q, float *work) {
    const long E = net->E, HE = net->H * E, per = net->H / net->G;
    const long W = whole(seen->shared + seen->own);
    float *keys_EW = take(&work, E * W), *values_EW = take(&work, E * W);
    float *made = take(&work, QUERIES * W), *change = take(&work, QUERIES * W);
    for (long g = 0; g < net->G; g++) {
        if (!seen->share) turned_of(net, seen, seen->k_shared, seen->k, g, keys_EW);
        turned_of(net, seen, seen->v_shared, seen->v, g, values_EW);
        for (long h = g * per; h < (g + 1) * per; h++)
            for (long c = 0; c < n_queries; c += QUERIES) {
                const long n = n_queries - c < QUERIES ? n_queries - c : QUERIES, at = c * HE + h * E;
                float *share = seen->share ? seen->share + h * n * W : made;
                const long end = seen->share ? reach(position, n)
                                             : shares(net, n, position + c, q + at, keys_EW, W, share);
                unmix(net, seen, n, end, share, grad + at, seen->grad_v_shared, seen->grad_v, g);
                const Term of_share = term(grad + at, HE, values_EW, W, E);
                product(n, whole(end), &of_share, 1, 0, 0, change, W);
                for (long i = 0; i < n; i++) {
                    const float *s = share + i * W;
                    float *d = change + i * W, along = 0;
                    for (long t = 0; t < whole(end); t++) along += s[t] * d[t];
                    for (long t = 0; t < whole(end); t++) d[t] = s[t] * (d[t] - along);
                }
                mix(net, seen, n, end, change, seen->k_shared, seen->k, g, grad_q + at);
                unmix(net, seen, n, end, change, q + at, seen->grad_k_shared, seen->grad_k, g);
            }
    }
}

/* Where a pass stands in a layer: the last of the network goes on at the positions asked for. */
typedef struct {
    const Decoder *net;
    const Layer *layer;
    const Pass *pass;
    const Part *part;
    Layout at;
    const long *each; /* 0, 1, 2 ... */
    long Q;           /* queries: of the positions asked for, or of all tokens */
    float scale;
    int apart;
} Here;

static Here here_of(
    const Decoder *net, const Pass *pass, const Part *part, Layout at, const long *each, long l) {
    const int apart = l == net->n_layers - 1 && pass->counts;
    return (Here){.net = net, .layer = net->layers + l, .pass = pass, .part = part, .at = at,
                  .each = each, .Q = apart ? at.Q : at.M, .apart = apart,
                  .scale = part->adapter < 0 ? 0 : net->scale_N[part->adapter]};
}

/* The token of a position in a row. */
static long token(const Here *here, long row, long position) {
    const long own = position - here->part->shared;
    return own < 0 ? position : here->at.token[row] + own;
}

/* Row b's queries (-1: those of the shared tokens): how many, the first, their positions. */
static long queries_of(const Here *here, long b, long *first, const long **position) {
    if (here->apart) {
        *first = b < 0 ? 0 : here->at.query[b];
        *position = here->pass->asked + (here->part->row + b) * here->pass->C;
        return b < 0 ? 0 : here->at.count[b];
    }
    *first = b < 0 ? 0 : here->at.token[b];
    *position = here->each + (b < 0 ? 0 : here->part->shared);
    return b < 0 ? here->part->shared : here->at.own[b];
}

/* What row b's queries see, and where the gradients of that go; `share` moves on to the next row's. */
static Seen seen_by(
    const Here *here, long b, const float *k, const float *v, float *grad_k, float *grad_v,
    long n_queries, float **share) {
    const long GE = here->net->G * here->net->E, own = b < 0 ? 0 : here->at.token[b] * GE;
    const Seen seen = {here->part->shared, b < 0 ? 0 : here->at.own[b], k, v, k + own, v + own,
                       grad_k, grad_v, grad_k ? grad_k + own : 0, grad_v ? grad_v + own : 0, *share};
    if (*share) *share += here->net->H * n_queries * whole(seen.shared + seen.own);
    return seen;
}

/* Rotary turns of all queries and keys. */
static void rotate_all(const Here *here, float *q, float *k, int back) {
    const Decoder *net = here->net;
    const long HE = net->H * net->E, GE = net->G * net->E;
    for (long b = -1; b < here->part->n_rows; b++) {
        const long *position;
        long first, n = queries_of(here, b, &first, &position);
        for (long c = 0; c < n; c++) rotate(net, q + (first + c) * HE, net->H, position[c], back);
        n = b < 0 ? here->part->shared : here->at.own[b];
        for (long t = 0; t < n; t++)
            if (b < 0) rotate(net, k + t * GE, net->G, t, back);
            else rotate(net, k + (here->at.token[b] + t) * GE, net->G, here->part->shared + t, back);
    }
}

/* Rows of what all tokens have, at the queries; or, the other way, added to them. */
static void gather(const Here *here, const float *all, float *to, int back) {
    const long D = here->net->D;
    for (long b = 0; b < here->part->n_rows; b++) {
        const long *position;
        long first;
        const long n = queries_of(here, b, &first, &position);
        for (long c = 0; c < n; c++) {
            const long m = token(here, b, position[c]), q = first + c;
            if (!back) memcpy(to + q * D, all + m * D, D * sizeof(float));
            else
                for (long d = 0; d < D; d++) to[m * D + d] += all[q * D + d];
        }
    }
}

static void layer_forward(const Here *here, Kept kept, float *next, float *work) {
    const Decoder *net = here->net;
    const Layer *layer = here->layer;
    const long D = net->D, F = net->F, HE = net->H * net->E, GE = net->G * net->E;
    const long n = here->part->adapter, M = here->at.M, Q = here->Q;
    const float s = here->scale;
    norm(M, D, kept.x, D, layer->before, kept.h, D);
    if (here->apart) gather(here, kept.h, kept.hq, 0), gather(here, kept.x, kept.mid, 0);
    const float *x = here->apart ? kept.mid : kept.x;
    float *memory[2] = {kept.k, kept.v}, *wide[2] = {kept.gate, kept.up};
    linears(&layer->query, 1, Q, D, kept.hq, n, s, 0, &kept.q, kept.inner_q, work);
    linears(layer->memory, 2, M, D, kept.h, n, s, 0, memory, kept.inner_m, work);
    if (kept.raw_q) {
        memcpy(kept.raw_q, kept.q, Q * HE * sizeof(float));
        memcpy(kept.raw_k, kept.k, M * GE * sizeof(float));
        norm(Q * net->H, net->E, kept.raw_q, net->E, layer->of_query, kept.q, net->E);
        norm(M * net->G, net->E, kept.raw_k, net->E, layer->of_key, kept.k, net->E);
    }
    rotate_all(here, kept.q, kept.k, 0);
    float *share = kept.share;
    for (long b = -1; b < here->part->n_rows; b++) {
        const long *position;
        long first;
        const long count = queries_of(here, b, &first, &position);
        const Seen seen = seen_by(here, b, kept.k, kept.v, 0, 0, count, &share);
        attend(net, &seen, count, position, kept.q + first * HE, kept.attended + first * HE, work);
    }
    linears(&layer->output, 1, Q, HE, kept.attended, n, s, x, &kept.mid, kept.inner_o, work);
    norm(Q, D, kept.mid, D, layer->after, kept.late, D);
    linears(layer->widen, 2, Q, D, kept.late, n, s, 0, wide, kept.inner_w, work);
    swiglu(Q * F, kept.gate, kept.up, 0, kept.open);
    linears(&layer->narrow, 1, Q, F, kept.open, n, s, kept.mid, &next, kept.inner_n, work);
}

/* grad (Q, D) of what left the layer becomes that (M, D) of what entered; 0 when nothing below has any. */
static int layer_backward(const Here *here, Kept kept, float *grad, float *found, float *work) {
    const Decoder *net = here->net;
    const Layer *layer = here->layer;
    const long D = net->D, F = net->F, HE = net->H * net->E, GE = net->G * net->E;
    const long n = here->part->adapter, M = here->at.M, Q = here->Q;
    const float s = here->scale;
    const int deep = layer->below || layer->attends, middle = deep || layer->output.rank;
    const int wide = middle || ranks(layer->widen, 2);
    float *inner = take(&work, Q * F);
    float *h = take(&work, M * D), *hq = take(&work, Q * D), *ways[2] = {kept.gate, kept.up};
    linears_back(&layer->narrow, 1, Q, F, &grad, kept.open, kept.inner_n, n, s, 0, wide ? inner : 0, found,
                 work);
    if (!wide) return 0;
    swiglu(Q * F, kept.gate, kept.up, inner, 0);
    linears_back(layer->widen, 2, Q, D, ways, kept.late, kept.inner_w, n, s, 0, middle ? hq : 0, found,
                 work);
    if (!middle) return 0;
    norm_back(Q, D, kept.mid, D, layer->after, hq, D, grad);
    memcpy(grad, hq, Q * D * sizeof(float));
    float *attended = take(&work, Q * HE);
    linears_back(&layer->output, 1, Q, HE, &grad, kept.attended, kept.inner_o, n, s, 0,
                 deep ? attended : 0, found, work);
    if (!deep) return 0;
    float *query = take(&work, Q * HE), *key = take(&work, M * GE), *value = take(&work, M * GE);
    float *memory[2] = {key, value};
    float *share = kept.share;
    memset(key, 0, M * GE * sizeof(float)), memset(value, 0, M * GE * sizeof(float));
    for (long b = -1; b < here->part->n_rows; b++) {
        const long *position;
        long first;
        const long count = queries_of(here, b, &first, &position), at = first * HE;
        const Seen seen = seen_by(here, b, kept.k, kept.v, key, value, count, &share);
        attend_back(net, &seen, count, position, kept.q + at, attended + at, query + at, work);
    }
    rotate_all(here, query, key, 1);
    if (kept.raw_q) {
        norm_back(Q * net->H, net->E, kept.raw_q, net->E, layer->of_query, query, net->E, 0);
        norm_back(M * net->G, net->E, kept.raw_k, net->E, layer->of_key, key, net->E, 0);
    }
    linears_back(&layer->query, 1, Q, D, &query, kept.hq, kept.inner_q, n, s, 0,
                 layer->below ? hq : 0, found, work);
    const int together = layer->below && !here->apart; /* both inputs are one */
    linears_back(layer->memory, 2, M, D, memory, kept.h, kept.inner_m, n, s, together ? hq : 0,
                 layer->below ? h : 0, found, work);
    if (!layer->below) return 0;
    if (!together) gather(here, hq, h, 1);
    norm_back(M, D, kept.x, D, layer->before, h, D, together ? grad : 0);
    if (!together) gather(here, grad, h, 1);
    memcpy(grad, h, M * D * sizeof(float));
    return 1;
}

/* A part's workspace: its layout, the values of each layer (of one if none are kept), scratch. */

static long layer_floats(const Decoder *net, const Pass *pass, long l, const Layout *at) {
    const int apart = l == net->n_layers - 1 && pass->counts;
    float *end = 0;
    lay(net, net->layers + l, at, apart, &end);
    return end - (float *)0;
}

static long all_floats(const Decoder *net, const Pass *pass, const Layout *at) {
    long all = 0;
    for (long l = pass->first; l < pass->end; l++) {
        const long n = layer_floats(net, pass, l, at);
        all = pass->keep ? all + n : n > all ? n : all;
    }
    return all;
}

static long larger(const Layout *at) { return at->M > at->Q ? at->M : at->Q; }

/* How many values a part's workspace has. */
long lorewright_floats(const Decoder *net, const Pass *pass, const Part *part) {
    float *room = calloc(8 * part->n_rows + 64, sizeof(float)), *from = room;
    if (!room) return -1;
    const Layout at = layout(pass, part, &from);
    const long M = larger(&at);
    long most = 0;
    for (long l = pass->first; l < pass->end; l++) {
        const long n = scratch(net, net->layers + l, M, at.longest, pass->keep);
        most = n > most ? n : most;
    }
    free(room);
    return 8 * part->n_rows + 2 * pass->T + 2 * M * net->D + all_floats(net, pass, &at) + most + 256;
}

static const long *positions(const Pass *pass, float **at) {
    long *each = (long *)take(at, 2 * pass->T);
    for (long t = 0; t < pass->T; t++) each[t] = t;
    return each;
}

/* A part's tokens out of (rows, T, D), or back into it. */
static void spread(const Pass *pass, const Part *part, const Layout *at, long D, float *all, float *to, int back) {
    for (long b = 0; b < part->n_rows; b++) {
        float *row = all + (part->row + b) * pass->T * D;
        const long size = sizeof(float) * D;
        const long shared = pass->lengths[part->row + b] ? part->shared : 0; /* a row may be left out */
        if (back) {
            memcpy(row, to, shared * size);
            memcpy(row + shared * D, to + at->token[b] * D, at->own[b] * size);
        } else {
            memcpy(to, row, shared * size);
            memcpy(to + at->token[b] * D, row + part->shared * D, at->own[b] * size);
        }
    }
}

/* Vectors at the positions asked for: out of (rows, C, D), or back into it. */
static void spread_asked(const Pass *pass, const Part *part, const Layout *at, long D, float *all, float *to, int back) {
    for (long b = 0; b < part->n_rows; b++) {
        float *row = all + (part->row + b) * pass->C * D, *mine = to + at->query[b] * D;
        const long size = sizeof(float) * D * at->count[b];
        if (back) memcpy(row, mine, size);
        else memcpy(mine, row, size);
    }
}

static void forward(const Decoder *net, const Pass *pass, const Part *part) {
    const long D = net->D;
    float *from = part->work;
    const Layout at = layout(pass, part, &from);
    const long *each = positions(pass, &from);
    float *out = take(&from, larger(&at) * D), *spare = take(&from, larger(&at) * D), *base = from;
    float *work = base + all_floats(net, pass, &at);
    for (long l = pass->first; l < pass->end; l++) {
        const Here here = here_of(net, pass, part, at, each, l);
        if (!pass->keep) from = base;
        const Kept kept = lay(net, here.layer, &at, here.apart, &from);
        if (l == pass->first) spread(pass, part, &at, D, (float *)pass->x, kept.x, 0);
        else memcpy(kept.x, out, at.M * D * sizeof(float));
        layer_forward(&here, kept, out, work);
    }
    if (pass->counts) {
        norm(at.Q, D, out, D, net->last, spare, D);
        spread_asked(pass, part, &at, D, pass->out, spare, 1);
    } else
        spread(pass, part, &at, D, pass->out, out, 1);
}

static void backward(const Decoder *net, const Pass *pass, const Part *part) {
    const long D = net->D;
    float *from = part->work, *starts[net->n_layers];
    const Layout at = layout(pass, part, &from);
    const long *each = positions(pass, &from);
    float *out = take(&from, larger(&at) * D), *grad = take(&from, larger(&at) * D);
    for (long l = pass->first; l < pass->end; l++) {
        starts[l] = from;
        from += layer_floats(net, pass, l, &at);
    }
    spread_asked(pass, part, &at, D, (float *)pass->grad, grad, 0);
    norm_back(at.Q, D, out, D, net->last, grad, D, 0);
    for (long l = pass->end - 1; l >= pass->first; l--) {
        const Here here = here_of(net, pass, part, at, each, l);
        const Kept kept = lay(net, here.layer, &at, here.apart, &starts[l]);
        if (!layer_backward(&here, kept, grad, part->grads, from)) break;
    }
}

/* Threads: each takes the next part until none is left. */

static void in_threads(void *(*work)(void *), void *job, long n_threads, long n_parts) {
    pthread_t others[63];
    long n_others = 0, wanted = (n_threads < n_parts ? n_threads : n_parts) - 1;
    while (n_others < wanted && n_others < 63 && !pthread_create(&others[n_others], 0, work, job))
        n_others++;
    work(job);
    for (long i = 0; i < n_others; i++) pthread_join(others[i], 0);
}

typedef void Work(const Decoder *, const Pass *, const Part *);

typedef struct {
    Work *work;
    const Decoder *net;
    const Pass *pass;
    const Part *parts;
    long n_parts, floats;
    float *shared; /* workspaces of `floats` values, one a thread, for parts without their own */
    atomic_long next, arrived;
} Crew;

static void *labour(void *crew_) {
    Crew *crew = crew_;
    const uint64_t before = flush();
    float *mine = crew->shared + crew->floats * atomic_fetch_add(&crew->arrived, 1);
    for (long i; (i = atomic_fetch_add(&crew->next, 1)) < crew->n_parts;) {
        Part part = crew->parts[i];
        if (!part.work) part.work = mine;
        crew->work(crew->net, crew->pass, &part);
    }
    restore(before);
    return 0;
}

void lorewright_run(
    const Decoder *net, const Pass *pass, const Part *parts, long n_parts, long n_threads,
    float *shared, long floats, long back) {
    Crew crew = {back ? backward : forward, net, pass, parts, n_parts, floats, shared, 0, 0};
    in_threads(labour, &crew, n_threads, n_parts);
}

/* Losses of positions under a frozen head, and their gradients with respect to its input. */

typedef struct {
    long M, D, V, chunk;
    const float *hidden, *down, *up;
    const long *target;
    float *loss;
    unsigned char *correct;
    float *grad, *logits; /* gradients, or null; `chunk` x V values a thread */
    atomic_long next, arrived;
} Scored;

static void score(Scored *job, long m, long n, float *logits) {
    const long D = job->D, V = job->V;
    const Term up = frozen(job->hidden + m * D, D, job->up, D);
    product(n, V, &up, 1, 0, 0, logits, V);
    for (long i = 0; i < n; i++) {
        float *x = logits + i * V;
        const long wanted = job->target[m + i];
        if (wanted < 0) { /* padding */
            job->loss[m + i] = 0, job->correct[m + i] = 1;
            if (job->grad) memset(x, 0, V * sizeof(float));
            continue;
        }
        const float most = largest(x, V), at = x[wanted];
        long best = 0;
        while (best < V - 1 && x[best] != most) best++;
        const float sum = exps(x, V, most), share = 1 / sum;
        job->loss[m + i] = logf(sum) - (at - most), job->correct[m + i] = best == wanted;
        if (job->grad) {
            for (long v = 0; v < V; v++) x[v] *= share;
            x[wanted] -= 1;
        }
    }
    if (job->grad) {
        const Term back = frozen(logits, V, job->down, V);
        product(n, D, &back, 1, 0, 0, job->grad + m * D, D);
    }
}

static void *scoring(void *job_) {
    Scored *job = job_;
    const uint64_t before = flush();
    float *mine = job->logits + job->chunk * job->V * atomic_fetch_add(&job->arrived, 1);
    for (long m; (m = atomic_fetch_add(&job->next, job->chunk)) < job->M;)
        score(job, m, job->M - m < job->chunk ? job->M - m : job->chunk, mine);
    restore(before);
    return 0;
}

void lorewright_nats(
    long M, long D, long V, const float *hidden, const float *down, const float *up,
    const long *target, float *loss, unsigned char *correct, float *grad, float *logits, long chunk,
    long n_threads) {
    Scored job = {M, D, V, chunk, hidden, down, up, target, loss, correct, grad, logits, 0, 0};
    in_threads(scoring, &job, n_threads, (M + chunk - 1) / chunk);
}

/* Adam on one adapter's values, each matrix in the basis of what its layer reads. */

typedef struct {
    long n_spans, rows, width; /* matrices (rows, width) that have one basis */
    const long *spans;         /* where each begins */
    const float *basis;        /* W (width, width) in panels; null: as it is */
    float ratio;               /* of their rate to the adapter's */
} Span;

typedef struct {
    float *weight, *first, *second;
    const float *grad;
    float clip, new_first, new_second, whole_first, whole_second, eps, rate, decay;
} Moving;

/* Moments move on; grad becomes the direction. */
static void adam(long n, float *grad, float *first, float *second, const Moving *by) {
    const float one = by->new_first, two = by->new_second;
    const float scale = 1 / by->whole_first, size = 1 / by->whole_second;
    for (long i = 0; i < n; i++) {
        const float g = grad[i];
        first[i] += one * (g - first[i]);
        second[i] += two * (g * g - second[i]);
        grad[i] = first[i] * scale / (sqrtf(second[i] * size) + by->eps);
    }
}

/* What brings the gradient's norm down to the clip; summed in double, whatever is padded with zeros. */
static float factor_of(long n, const Span *groups, const Moving *by) {
    double square = 0;
    for (const Span *group = groups; group < groups + n; group++)
        for (long s = 0; s < group->n_spans; s++) {
            const float *grad = by->grad + group->spans[s];
            for (long i = 0; i < group->rows * group->width; i++) square += (double)grad[i] * grad[i];
        }
    const double factor = by->clip / (sqrt(square) + 1e-6);
    return factor < 1 ? factor : square == square ? 1 : NAN;
}

/* `work` holds twice the largest group of matrices of one basis. */
void lorewright_adam(long n, const Span *groups, const Moving *by, float *work) {
    const uint64_t before = flush();
    const float factor = factor_of(n, groups, by);
    for (const Span *group = groups; group < groups + n; group++) {
        const long size = group->rows * group->width, all = group->n_spans * group->rows;
        const long width = group->width;
        float *here = work, *there = work + all * width;
        for (long s = 0; s < group->n_spans; s++)
            for (long i = 0; i < size; i++)
                here[s * size + i] = factor * by->grad[group->spans[s] + i];
        if (group->basis) {
            const Term turn = frozen(here, width, group->basis, width);
            product(all, width, &turn, 1, 0, 0, there, width);
            float *other = here;
            here = there, there = other;
        }
        for (long s = 0; s < group->n_spans; s++)
            adam(size, here + s * size, by->first + group->spans[s], by->second + group->spans[s], by);
        if (group->basis) {
            const Term turn = frozen(here, width, group->basis, width);
            product(all, width, &turn, 1, 0, 0, there, width);
            here = there;
        }
        for (long s = 0; s < group->n_spans; s++) {
            float *weight = by->weight + group->spans[s];
            const float shrink = 1 - by->rate * by->decay, rate = by->rate * group->ratio;
            for (long i = 0; i < size; i++)
                weight[i] = weight[i] * shrink - rate * here[s * size + i];
        }
    }
    restore(before);
}

/* Columns of a panel. */
long lorewright_columns(void) { return COLUMNS; }

/* Sizes of the structures, so that Python's copies of them can be checked. */
void lorewright_sizes(long *sizes) {
    sizes[0] = sizeof(Linear), sizes[1] = sizeof(Layer), sizes[2] = sizeof(Decoder);
    sizes[3] = sizeof(Pass), sizes[4] = sizeof(Part);
    sizes[5] = sizeof(Span), sizes[6] = sizeof(Moving);
}

/* One product, for tests and timings: to (M, N) = left (M, K) right (K, N). */
void lorewright_product(long M, long N, long K, const float *left, const float *right, float *to) {
    const Term one = term(left, K, right, N, K);
    product(M, N, &one, 1, 0, 0, to, N);
}
