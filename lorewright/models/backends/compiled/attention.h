/* Causal attention with rotary positions, forward and back. */

#pragma once

#include "network.h"

/* Rotary positions: pairs (e, e + E/2) of n heads rotated by their position's angle, or back. */
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

/* Shares of QUERIES queries at most, zero after each one's position; how far they see. Keys are
   transposed: (E, W). */
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

/* What queries of a row see: the part's shared tokens, then the row's own; (tokens, G, E) each. */
typedef struct {
    long shared, own;
    const float *k_shared, *v_shared, *k, *v;
    float *grad_k_shared, *grad_v_shared, *grad_k, *grad_v; /* added to */
    float *share; /* saved shares (H, queries, W), or null */
} Seen;

/* A head's keys or values, transposed: (E, W). */
static void transpose_head(
    const Decoder *net, const Seen *seen, const float *shared, const float *own, long g,
    float *to_EW) {
    const long E = net->E, GE = net->G * E, T = seen->shared + seen->own, W = whole(T);
    transpose(seen->shared, E, shared + g * E, GE, 1, to_EW, W, 0);
    transpose(seen->own, E, own + g * E, GE, 1, to_EW + seen->shared, W, W - T);
}

/* to (n, E) = weights (n, tokens) times a head's keys or values. */
static void
mix(const Decoder *net, const Seen *seen, long n, long end, const float *weight,
    const float *shared, const float *own, long g, float *to) {
    const long E = net->E, GE = net->G * E, W = whole(seen->shared + seen->own);
    const long before = end < seen->shared ? end : seen->shared;
    const Term both[2] = {
        term(weight, W, shared + g * E, GE, before),
        term(weight + before, W, own + g * E, GE, end - before)};
    product(n, E, before ? both : both + 1, before && end > before ? 2 : 1, 0, 0, to, net->H * E);
}

/* Gradients of a head's keys or values: += weights' (tokens, n) times x (n, E). */
static void unmix(
    const Decoder *net, const Seen *seen, long n, long end, const float *weight, const float *x,
    float *shared, float *own, long g) {
    const long E = net->E, GE = net->G * E, W = whole(seen->shared + seen->own);
    const long before = end < seen->shared ? end : seen->shared;
    const Term to_shared = transposed(weight, W, x, net->H * E, n);
    const Term to_own = transposed(weight + before, W, x, net->H * E, n);
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
        transpose_head(net, seen, seen->k_shared, seen->k, g, keys_EW);
        for (long h = g * per; h < (g + 1) * per; h++)
            for (long c = 0; c < n_queries; c += QUERIES) {
                const long left = n_queries - c, n = left < QUERIES ? left : QUERIES;
                const long at = c * HE + h * E;
                float *share = seen->share ? seen->share + (h * n_queries + c) * W : made;
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
        if (!seen->share) transpose_head(net, seen, seen->k_shared, seen->k, g, keys_EW);
        transpose_head(net, seen, seen->v_shared, seen->v, g, values_EW);
        for (long h = g * per; h < (g + 1) * per; h++)
            for (long c = 0; c < n_queries; c += QUERIES) {
                const long left = n_queries - c, n = left < QUERIES ? left : QUERIES;
                const long at = c * HE + h * E;
                float *share = seen->share ? seen->share + (h * n_queries + c) * W : made;
                const long end = seen->share
                                     ? reach(position + c, n)
                                     : shares(net, n, position + c, q + at, keys_EW, W, share);
                unmix(net, seen, n, end, share, grad + at, seen->grad_v_shared, seen->grad_v, g);
                const Term of_share = term(grad + at, HE, values_EW, W, E);
                product(n, whole(end), &of_share, 1, 0, 0, change, W);
                for (long i = 0; i < n; i++) {
                    const float *s = share + i * W;
                    float *d = change + i * W, along = 0;
#pragma omp simd reduction(+ : along)
                    for (long t = 0; t < whole(end); t++) along += s[t] * d[t];
                    for (long t = 0; t < whole(end); t++) d[t] = s[t] * (d[t] - along);
                }
                mix(net, seen, n, end, change, seen->k_shared, seen->k, g, grad_q + at);
                unmix(net, seen, n, end, change, q + at, seen->grad_k_shared, seen->grad_k, g);
            }
    }
}
