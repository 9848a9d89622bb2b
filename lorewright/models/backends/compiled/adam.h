/* A step of Adam on one adapter's values, each matrix in the basis of its layer's inputs. */

#pragma once

#include "products.h"

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

/* What brings the gradient's norm down to the clip. Summed in double: zeros that fill a smaller
   rank up then change nothing. */
static float factor_of(long n, const Span *groups, const Moving *by) {
    double square = 0;
    for (const Span *group = groups; group < groups + n; group++)
        for (long s = 0; s < group->n_spans; s++) {
            const float *grad = by->grad + group->spans[s];
            const long size = group->rows * group->width;
#pragma omp simd reduction(+ : square)
            for (long i = 0; i < size; i++) square += (double)grad[i] * grad[i];
        }
    const double factor = by->clip / (sqrt(square) + 1e-6);
    return factor < 1 ? factor : square == square ? 1 : NAN;
}

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
        for (long s = 0; s < group->n_spans; s++) {
            const long start = group->spans[s];
            adam(size, here + s * size, by->first + start, by->second + start, by);
        }
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
