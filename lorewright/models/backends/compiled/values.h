/* Exponentials, SwiGLU and norms, in vectors. */

#pragma once

#include "products.h"

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
#pragma omp simd reduction(max : most)
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

static inline float inverse_of(const float *x, long D, float eps) {
    float square = 0;
#pragma omp simd reduction(+ : square)
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
#pragma omp simd reduction(+ : along)
        for (long d = 0; d < D; d++) along += grad[d] * by.weight[d] * x[d];
        along *= inverse * inverse / D;
        for (long d = 0; d < D; d++) grad[d] = (grad[d] * by.weight[d] - x[d] * along) * inverse;
        if (rest)
            for (long d = 0; d < D; d++) grad[d] += rest[m * D + d];
    }
}
