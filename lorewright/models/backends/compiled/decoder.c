/* A Llama-like decoder with LoRA adapters: forward, and backward to A and B, in one call each.

   The Python files beside it fill the structures, own every buffer and have this compiled; by_hand.py
   has the same arithmetic in torch, and the tests hold the two against each other. Work is cut into
   parts: rows of the batch that use one adapter. A part goes through all layers by itself, on one
   thread, in a workspace of its own, so its numbers depend on nothing beside it.

   Names: M tokens of a part, Q queried positions, T tokens a row, D width, F inner width, H query
   heads, G key heads, E width of a head, I in-features, O out-features, R rank, W tokens filled up
   to whole vectors. Matrices are row-major float32. */

#include "adam.h"
#include "attention.h"
#include "head.h"

/* Where a pass stands in a layer: the last of the network goes on at the queried positions. */
typedef struct {
    const Decoder *net;
    const Layer *layer;
    const Pass *pass;
    const Part *part;
    Layout at;
    const long *each; /* 0, 1, 2 ... */
    long Q;           /* queries: of the queried positions, or of all tokens */
    float scale;
    int apart;
} Here;

static Here here_of(
    const Decoder *net, const Pass *pass, const Part *part, Layout at, const long *each, long l) {
    const int apart = l == net->n_layers - 1 && pass->counts;
    return (Here){
        .net = net,
        .layer = net->layers + l,
        .pass = pass,
        .part = part,
        .at = at,
        .each = each,
        .Q = apart ? at.Q : at.M,
        .apart = apart,
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
        *position = here->pass->positions + (here->part->row + b) * here->pass->C;
        return b < 0 ? 0 : here->at.count[b];
    }
    *first = b < 0 ? 0 : here->at.token[b];
    *position = here->each + (b < 0 ? 0 : here->part->shared);
    return b < 0 ? here->part->shared : here->at.own[b];
}

/* What row b's queries see, and where its gradients go; `share` moves on to the next row's. */
static Seen seen_by(
    const Here *here, long b, const float *k, const float *v, float *grad_k, float *grad_v,
    long n_queries, float **share) {
    const long GE = here->net->G * here->net->E, own = b < 0 ? 0 : here->at.token[b] * GE;
    Seen seen = {.shared = here->part->shared, .own = b < 0 ? 0 : here->at.own[b], .share = *share};
    seen.k_shared = k, seen.v_shared = v, seen.k = k + own, seen.v = v + own;
    if (grad_k) {
        seen.grad_k_shared = grad_k, seen.grad_v_shared = grad_v;
        seen.grad_k = grad_k + own, seen.grad_v = grad_v + own;
    }
    if (*share) *share += here->net->H * n_queries * whole(seen.shared + seen.own);
    return seen;
}

/* Rotate all queries and keys. */
static void rotate_all(const Here *here, float *q, float *k, int back) {
    const Decoder *net = here->net;
    const long HE = net->H * net->E, GE = net->G * net->E;
    for (long b = -1; b < here->part->n_rows; b++) {
        const long *position;
        long first, n = queries_of(here, b, &first, &position);
        for (long c = 0; c < n; c++) rotate(net, q + (first + c) * HE, net->H, position[c], back);
        const long start = b < 0 ? 0 : here->at.token[b], before = b < 0 ? 0 : here->part->shared;
        n = b < 0 ? here->part->shared : here->at.own[b];
        for (long t = 0; t < n; t++) rotate(net, k + (start + t) * GE, net->G, before + t, back);
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

static void layer_forward(const Here *here, Saved saved, float *next, float *work) {
    const Decoder *net = here->net;
    const Layer *layer = here->layer;
    const long D = net->D, F = net->F, HE = net->H * net->E, GE = net->G * net->E;
    const long n = here->part->adapter, M = here->at.M, Q = here->Q;
    const float s = here->scale;
    norm(M, D, saved.x, D, layer->before, saved.h, D);
    if (here->apart) gather(here, saved.h, saved.hq, 0), gather(here, saved.x, saved.mid, 0);
    const float *x = here->apart ? saved.mid : saved.x;
    float *memory[2] = {saved.k, saved.v}, *wide[2] = {saved.gate, saved.up};
    linears(&layer->query, 1, Q, D, saved.hq, n, s, 0, &saved.q, saved.inner_q, work);
    linears(layer->memory, 2, M, D, saved.h, n, s, 0, memory, saved.inner_m, work);
    if (saved.raw_q) {
        memcpy(saved.raw_q, saved.q, Q * HE * sizeof(float));
        memcpy(saved.raw_k, saved.k, M * GE * sizeof(float));
        norm(Q * net->H, net->E, saved.raw_q, net->E, layer->of_query, saved.q, net->E);
        norm(M * net->G, net->E, saved.raw_k, net->E, layer->of_key, saved.k, net->E);
    }
    rotate_all(here, saved.q, saved.k, 0);
    float *share = saved.share;
    for (long b = -1; b < here->part->n_rows; b++) {
        const long *position;
        long first;
        const long count = queries_of(here, b, &first, &position);
        const Seen seen = seen_by(here, b, saved.k, saved.v, 0, 0, count, &share);
        attend(net, &seen, count, position, saved.q + first * HE, saved.attended + first * HE, work);
    }
    linears(&layer->output, 1, Q, HE, saved.attended, n, s, x, &saved.mid, saved.inner_o, work);
    norm(Q, D, saved.mid, D, layer->after, saved.late, D);
    linears(layer->widen, 2, Q, D, saved.late, n, s, 0, wide, saved.inner_w, work);
    swiglu(Q * F, saved.gate, saved.up, 0, saved.open);
    linears(&layer->narrow, 1, Q, F, saved.open, n, s, saved.mid, &next, saved.inner_n, work);
}

/* grad (Q, D) of what left the layer becomes that (M, D) of what entered; 0 when nothing below has
 * any. */
static int layer_backward(const Here *here, Saved saved, float *grad, float *of_weights, float *work) {
    const Decoder *net = here->net;
    const Layer *layer = here->layer;
    const long D = net->D, F = net->F, HE = net->H * net->E, GE = net->G * net->E;
    const long n = here->part->adapter, M = here->at.M, Q = here->Q;
    const float s = here->scale;
    const int deep = layer->below || layer->attends, middle = deep || layer->output.rank;
    const int wide = middle || ranks(layer->widen, 2);
    float *inner = take(&work, Q * F);
    float *h = take(&work, M * D), *hq = take(&work, Q * D), *ways[2] = {saved.gate, saved.up};
    linears_back(
        &layer->narrow, 1, Q, F, &grad, saved.open, saved.inner_n, n, s, 0, wide ? inner : 0, of_weights,
        work);
    if (!wide) return 0;
    swiglu(Q * F, saved.gate, saved.up, inner, 0);
    linears_back(
        layer->widen, 2, Q, D, ways, saved.late, saved.inner_w, n, s, 0, middle ? hq : 0, of_weights,
        work);
    if (!middle) return 0;
    norm_back(Q, D, saved.mid, D, layer->after, hq, D, grad);
    memcpy(grad, hq, Q * D * sizeof(float));
    float *attended = take(&work, Q * HE);
    linears_back(
        &layer->output, 1, Q, HE, &grad, saved.attended, saved.inner_o, n, s, 0, deep ? attended : 0,
        of_weights, work);
    if (!deep) return 0;
    float *query = take(&work, Q * HE), *key = take(&work, M * GE), *value = take(&work, M * GE);
    float *memory[2] = {key, value};
    float *share = saved.share;
    memset(key, 0, M * GE * sizeof(float)), memset(value, 0, M * GE * sizeof(float));
    for (long b = -1; b < here->part->n_rows; b++) {
        const long *position;
        long first;
        const long count = queries_of(here, b, &first, &position), at = first * HE;
        const Seen seen = seen_by(here, b, saved.k, saved.v, key, value, count, &share);
        attend_back(net, &seen, count, position, saved.q + at, attended + at, query + at, work);
    }
    rotate_all(here, query, key, 1);
    if (saved.raw_q) {
        norm_back(Q * net->H, net->E, saved.raw_q, net->E, layer->of_query, query, net->E, 0);
        norm_back(M * net->G, net->E, saved.raw_k, net->E, layer->of_key, key, net->E, 0);
    }
    linears_back(
        &layer->query, 1, Q, D, &query, saved.hq, saved.inner_q, n, s, 0, layer->below ? hq : 0,
        of_weights, work);
    const int together = layer->below && !here->apart; /* both inputs are one */
    linears_back(
        layer->memory, 2, M, D, memory, saved.h, saved.inner_m, n, s, together ? hq : 0,
        layer->below ? h : 0, of_weights, work);
    if (!layer->below) return 0;
    if (!together) gather(here, hq, h, 1);
    norm_back(M, D, saved.x, D, layer->before, h, D, together ? grad : 0);
    if (!together) gather(here, grad, h, 1);
    memcpy(grad, h, M * D * sizeof(float));
    return 1;
}

/* A part's workspace: its layout, the values of each layer (of one if none are saved), scratch. */

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
        all = pass->save ? all + n : n > all ? n : all;
    }
    return all;
}

static long larger(const Layout *at) { return at->M > at->Q ? at->M : at->Q; }

long lorewright_floats(const Decoder *net, const Pass *pass, const Part *part) {
    float *space = calloc(8 * part->n_rows + 64, sizeof(float)), *from = space;
    if (!space) return -1;
    const Layout at = layout(pass, part, &from);
    const long M = larger(&at);
    long most = 0;
    for (long l = pass->first; l < pass->end; l++) {
        const long n = scratch(net, net->layers + l, M, at.longest, pass->save);
        most = n > most ? n : most;
    }
    free(space);
    const long lists = 8 * part->n_rows + 2 * pass->T, ends = 2 * M * net->D;
    return (lists + ends + all_floats(net, pass, &at) + most + 256) / 16 * 16;
}

static const long *positions(const Pass *pass, float **at) {
    long *each = (long *)take(at, 2 * pass->T);
    for (long t = 0; t < pass->T; t++) each[t] = t;
    return each;
}

/* A part's tokens out of (rows, T, D), or back into it. */
static void spread(
    const Pass *pass, const Part *part, const Layout *at, long D, float *all, float *to, int back) {
    for (long b = 0; b < part->n_rows; b++) {
        float *row = all + (part->row + b) * pass->T * D;
        const long size = sizeof(float) * D;
        const long shared =
            pass->lengths[part->row + b] ? part->shared : 0; /* a row may be left out */
        if (back) {
            memcpy(row, to, shared * size);
            memcpy(row + shared * D, to + at->token[b] * D, at->own[b] * size);
        } else {
            memcpy(to, row, shared * size);
            memcpy(to + at->token[b] * D, row + part->shared * D, at->own[b] * size);
        }
    }
}

/* Vectors at the queried positions: out of (rows, C, D), or back into it. */
static void spread_queries(
    const Pass *pass, const Part *part, const Layout *at, long D, float *all, float *to, int back) {
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
        if (!pass->save) from = base;
        const Saved saved = lay(net, here.layer, &at, here.apart, &from);
        if (l == pass->first) spread(pass, part, &at, D, (float *)pass->x, saved.x, 0);
        else memcpy(saved.x, out, at.M * D * sizeof(float));
        layer_forward(&here, saved, out, work);
    }
    if (pass->counts) {
        norm(at.Q, D, out, D, net->last, spare, D);
        spread_queries(pass, part, &at, D, pass->out, spare, 1);
    } else spread(pass, part, &at, D, pass->out, out, 1);
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
    spread_queries(pass, part, &at, D, (float *)pass->grad, grad, 0);
    norm_back(at.Q, D, out, D, net->last, grad, D, 0);
    for (long l = pass->end - 1; l >= pass->first; l--) {
        const Here here = here_of(net, pass, part, at, each, l);
        const Saved saved = lay(net, here.layer, &at, here.apart, &starts[l]);
        if (!layer_backward(&here, saved, grad, part->grads, from)) break;
    }
}

/* The threads of a pass: each takes the next part until none is left. */

typedef void Work(const Decoder *, const Pass *, const Part *);

typedef struct {
    Work *work;
    const Decoder *net;
    const Pass *pass;
    const Part *parts;
    long n_parts, floats;
    float *shared; /* workspaces of `floats` values, one a thread, for parts without their own */
    atomic_long next, arrived;
} Queue;

static void *run_parts(void *queue_) {
    Queue *queue = queue_;
    const uint64_t before = flush();
    float *mine = queue->shared + queue->floats * atomic_fetch_add(&queue->arrived, 1);
    for (long i; (i = atomic_fetch_add(&queue->next, 1)) < queue->n_parts;) {
        Part part = queue->parts[i];
        if (!part.work) part.work = mine;
        queue->work(queue->net, queue->pass, &part);
    }
    restore(before);
    return 0;
}

void lorewright_run(
    const Decoder *net, const Pass *pass, const Part *parts, long n_parts, long n_threads,
    float *shared, long floats, long back) {
    Queue queue = {back ? backward : forward, net, pass, parts, n_parts, floats, shared, 0, 0};
    in_threads(run_parts, &queue, n_threads, n_parts);
}

long lorewright_columns(void) { return COLUMNS; }

void lorewright_product(long M, long N, long K, const float *left, const float *right, float *to) {
    const Term one = term(left, K, right, N, K);
    product(M, N, &one, 1, 0, 0, to, N);
}
