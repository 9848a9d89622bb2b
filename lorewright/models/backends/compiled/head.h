/* Losses under a frozen output head, without keeping logits. */

#pragma once

#include "values.h"

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
