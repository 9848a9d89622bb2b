/* A Llama-like decoder with LoRA adapters: forward, and backward to A and B, in one call each.

   The Python files beside it fill the structures, own every buffer and have this compiled; `fused`
   has the same arithmetic in torch, and the tests hold the two against each other. Work is cut into
   parts: rows of the batch that use one adapter. A part goes through all layers by itself, on one
   thread, in a workspace of its own, so its numbers depend on nothing beside it.

   Names: M tokens of a part, Q positions asked for, T tokens a row, D width, F inner width, H query
   heads, G key heads, E width of a head, I in-features, O out-features, R rank, W tokens filled up
   to whole vectors. Matrices are row-major float32. */

#include "adam.h"
#include "attention.h"
#include "head.h"

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
        *position = here->pass->asked + (here->part->row + b) * here->pass->C;
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

/* Rotary turns of all queries and keys. */
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

/* grad (Q, D) of what left the layer becomes that (M, D) of what entered; 0 when nothing below has
 * any. */
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
    linears_back(
        &layer->narrow, 1, Q, F, &grad, kept.open, kept.inner_n, n, s, 0, wide ? inner : 0, found,
        work);
    if (!wide) return 0;
    swiglu(Q * F, kept.gate, kept.up, inner, 0);
    linears_back(
        layer->widen, 2, Q, D, ways, kept.late, kept.inner_w, n, s, 0, middle ? hq : 0, found,
        work);
    if (!middle) return 0;
    norm_back(Q, D, kept.mid, D, layer->after, hq, D, grad);
    memcpy(grad, hq, Q * D * sizeof(float));
    float *attended = take(&work, Q * HE);
    linears_back(
        &layer->output, 1, Q, HE, &grad, kept.attended, kept.inner_o, n, s, 0, deep ? attended : 0,
        found, work);
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
    linears_back(
        &layer->query, 1, Q, D, &query, kept.hq, kept.inner_q, n, s, 0, layer->below ? hq : 0,
        found, work);
    const int together = layer->below && !here->apart; /* both inputs are one */
    linears_back(
        layer->memory, 2, M, D, memory, kept.h, kept.inner_m, n, s, together ? hq : 0,
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

/* Vectors at the positions asked for: out of (rows, C, D), or back into it. */
static void spread_asked(
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
        if (!pass->keep) from = base;
        const Kept kept = lay(net, here.layer, &at, here.apart, &from);
        if (l == pass->first) spread(pass, part, &at, D, (float *)pass->x, kept.x, 0);
        else memcpy(kept.x, out, at.M * D * sizeof(float));
        layer_forward(&here, kept, out, work);
    }
    if (pass->counts) {
        norm(at.Q, D, out, D, net->last, spare, D);
        spread_asked(pass, part, &at, D, pass->out, spare, 1);
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
    spread_asked(pass, part, &at, D, (float *)pass->grad, grad, 0);
    norm_back(at.Q, D, out, D, net->last, grad, D, 0);
    for (long l = pass->end - 1; l >= pass->first; l--) {
        const Here here = here_of(net, pass, part, at, each, l);
        const Kept kept = lay(net, here.layer, &at, here.apart, &starts[l]);
        if (!layer_backward(&here, kept, grad, part->grads, from)) break;
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
