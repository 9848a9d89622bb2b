/* What a decoder, a pass over a batch and a part of it are; linear layers with adapters.

   Python fills Linear, Layer, Decoder, Pass and Part; layout.py has the same fields. */

#pragma once

#include "values.h"

typedef struct {
    long n_out;
    const float *up, *down, *bias; /* W' (I, O) and W (O, I) in panels; (O) or null */
    long rank;                     /* of A and B as stored; 0: not adapted */
    const long *rank_N;            /* what each adapter uses of it */
    const float *A, *B;            /* (N, R, I), (N, O, R), adapters `stride` values apart */
    long stride_A, stride_B;
    long at_A, at_B; /* where their gradients lie among a part's */
} Linear;

typedef struct {
    Linear query, memory[2], output, widen[2], narrow;
    Norm before, after, of_query, of_key; /* the last two without weight where heads have no norm */
    int attends, below;                   /* is there an adapter: in q, k or v; in a layer below */
} Layer;

typedef struct {
    long D, F, H, G, E, n_layers;
    const Layer *layers;
    Norm last;
    const float *cos, *sin; /* (positions, E/2), with the root of attention's scale in them */
    const float *scale_N;
} Decoder;

typedef struct {
    long T, C;       /* tokens and positions asked for of the longest row */
    long first, end; /* layers that run; where none is asked for, `out` is what leaves the last */
    const float *x;  /* (rows, T, D) what enters */
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
    float *x, *h, *hq, *q, *k, *v, *raw_q, *raw_k, *share, *attended, *mid, *late, *gate, *up,
        *open;
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
    Layout found = {
        .M = shared,
        .own = all,
        .token = all + n,
        .count = all + 2 * n,
        .query = all + 3 * n,
        .shares = {shared * whole(shared)}};
    for (long b = 0; b < n; b++) {
        const long row = part->row + b, length = pass->lengths[row];
        found.own[b] = length > shared ? length - shared : 0; /* a row may be left out */
        found.token[b] = found.M, found.M += found.own[b];
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

/* Values beside the kept ones that a layer needs while it runs; M tokens or queries, T of one row.
 */
static long scratch(const Decoder *net, const Layer *layer, long M, long T, int back) {
    const long D = net->D, F = net->F, HE = net->H * net->E, GE = net->G * net->E, W = whole(T);
    const long wide = HE > F ? HE : F, most = wide > D ? wide : D;
    const long all[] = {
        ranks(&layer->query, 1), ranks(layer->memory, 2), ranks(&layer->output, 1),
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
            const float *A = one->A + adapter * one->stride_A,
                        *B = one->B + adapter * one->stride_B;
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
