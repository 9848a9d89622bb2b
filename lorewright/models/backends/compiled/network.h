/* How a part of a batch is laid out in memory; linear layers with adapters. */

#pragma once

#include "values.h"

/* Where a part's tokens and queries lie: first the shared tokens, then each row's own. */
typedef struct {
    long M, Q, longest;
    long shares[2]; /* of a head: how many attention has, of all tokens and of the queries */
    long *own, *token, *count, *query; /* a row's own tokens, the first; its queries, the first */
} Layout;

/* A part's values in one layer. */
typedef struct {
    float *x, *h, *hq, *q, *k, *v, *raw_q, *raw_k, *share, *attended, *mid, *late, *gate, *up,
        *open;
    float *inner_q, *inner_m, *inner_o, *inner_w, *inner_n;
} Saved;

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
    Layout laid = {
        .M = shared,
        .own = all,
        .token = all + n,
        .count = all + 2 * n,
        .query = all + 3 * n,
        .shares = {shared * whole(shared)}};
    for (long b = 0; b < n; b++) {
        const long row = part->row + b, length = pass->lengths[row];
        laid.own[b] = length > shared ? length - shared : 0; /* a row may be left out */
        laid.token[b] = laid.M, laid.M += laid.own[b];
        laid.count[b] = pass->counts ? pass->counts[row] : 0;
        laid.query[b] = laid.Q, laid.Q += laid.count[b];
        laid.longest = length > laid.longest ? length : laid.longest;
        const long seen = whole(shared + laid.own[b]);
        laid.shares[0] += laid.own[b] * seen, laid.shares[1] += laid.count[b] * seen;
    }
    if (laid.longest > QUERIES) laid.shares[0] = laid.shares[1] = 0; /* many: computed again */
    return laid;
}

/* Lays out a layer's values from `at` on, which moves behind them. */
static Saved lay(const Decoder *net, const Layer *layer, const Layout *part, int apart, float **at) {
    const long D = net->D, F = net->F, HE = net->H * net->E, GE = net->G * net->E;
    const long M = part->M, Q = apart ? part->Q : part->M;
    Saved saved;
    saved.x = take(at, M * D), saved.h = take(at, M * D);
    saved.hq = apart ? take(at, Q * D) : saved.h;
    saved.q = take(at, Q * HE), saved.k = take(at, M * GE), saved.v = take(at, M * GE);
    saved.raw_q = layer->of_query.weight ? take(at, Q * HE) : 0;
    saved.raw_k = layer->of_key.weight ? take(at, M * GE) : 0;
    saved.share = part->shares[0] ? take(at, net->H * part->shares[apart]) : 0;
    saved.attended = take(at, Q * HE), saved.mid = take(at, Q * D), saved.late = take(at, Q * D);
    saved.gate = take(at, Q * F), saved.up = take(at, Q * F), saved.open = take(at, Q * F);
    saved.inner_q = take(at, Q * ranks(&layer->query, 1));
    saved.inner_m = take(at, M * ranks(layer->memory, 2));
    saved.inner_o = take(at, Q * ranks(&layer->output, 1));
    saved.inner_w = take(at, Q * ranks(layer->widen, 2));
    saved.inner_n = take(at, Q * ranks(&layer->narrow, 1));
    return saved;
}

/* Values beside the saved ones that a layer needs while it runs; M tokens or queries, T of one row.
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

/* Linear layers of one input with adapter n on them; inner = scale A x is saved for the backward pass. */
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
    const float *inner, long adapter, float scale, const float *from, float *to, float *of_weights,
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
            float *at_A = of_weights + one->at_A, *at_B = of_weights + one->at_B;
            const float *A = one->A + adapter * one->stride_A;
            if (rank < full) memset(at_B, 0, O * full * sizeof(float));
            memset(at_A + rank * I, 0, (full - rank) * I * sizeof(float));
            widened(O, rank, one->B + adapter * one->stride_B, full, matrix);
            const Term out = term(grads[i], O, matrix, whole(rank), O);
            product(M, whole(rank), &out, 1, 0, 0, back + r, R);
            for (long m = 0; m < M; m++)
                for (long j = 0; j < whole(rank); j++) back[m * R + r + j] *= scale;
            const Term of_B = transposed(inner + r, R, grads[i], O, M);
            product(rank, O, &of_B, 1, 0, 0, matrix, O);
            for (long o = 0; o < O; o++)
                for (long j = 0; j < rank; j++) at_B[o * full + j] = matrix[j * O + o];
            const Term of_A = transposed(back + r, R, x, I, M);
            product(rank, I, &of_A, 1, 0, 0, at_A, I);
            if (rank) terms[n_terms++] = term(back + r, R, A, I, rank);
        }
        r += whole(full);
    }
    if (to) product(M, I, terms, n_terms, from, I, to, I);
}
