/* What the C files and Python share. cffi reads this file as it is: no preprocessor in it. */

typedef struct {
    const float *weight;
    float eps;
} Norm;

/* A linear layer and the adapters on it. */
typedef struct {
    long n_out;
    const float *up, *down, *bias; /* W' (I, O) and W (O, I), packed; (O) or null */
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

/* A pass over a batch. */
typedef struct {
    long T, C;       /* tokens and queried positions of the longest row */
    long first, end; /* layers that run; without positions, `out` is what leaves the last one */
    const float *x;  /* (rows, T, D) what enters */
    const long *lengths;   /* of each row, how many of its T tokens are needed */
    const long *counts;    /* of each row, how many of its C positions are queried; null: none */
    const long *positions; /* (rows, C) */
    float *out;            /* (rows, C, D), or (rows, T, D) */
    const float *grad;     /* of `out` */
    long save;             /* values for the backward pass */
} Pass;

/* Rows of a batch that use one adapter. */
typedef struct {
    long row, n_rows, adapter; /* -1: none */
    long shared;               /* tokens with which all its rows begin: they are computed once */
    float *work, *grads;
} Part;

/* Matrices of one adapter that Adam moves in one basis. */
typedef struct {
    long n_spans, rows, width; /* matrices (rows, width) */
    const long *spans;         /* where each begins */
    const float *basis;        /* W (width, width), packed; null: as it is */
    float ratio;               /* of their rate to the adapter's */
} Span;

/* A step of Adam on one adapter. */
typedef struct {
    float *weight, *first, *second;
    const float *grad;
    float clip, new_first, new_second, whole_first, whole_second, eps, rate, decay;
} Moving;

/* Values of a part's workspace; below 0 without memory to lay it out. */
long lorewright_floats(const Decoder *net, const Pass *pass, const Part *part);

/* A pass forward, or back, of all parts; parts without a workspace share those in `shared`. */
void lorewright_run(
    const Decoder *net, const Pass *pass, const Part *parts, long n_parts, long n_threads,
    float *shared, long floats, long back);

/* Losses of M positions, and their gradients unless `grad` is null. */
void lorewright_nats(
    long M, long D, long V, const float *hidden, const float *down, const float *up,
    const long *target, float *loss, unsigned char *correct, float *grad, float *logits, long chunk,
    long n_threads);

/* `work` holds twice the largest group of matrices of one basis. */
void lorewright_adam(long n, const Span *groups, const Moving *by, float *work);

/* A frozen matrix (K, N), or the transposed (N, K), packed. */
void lorewright_pack(long K, long N, const float *from, long transposed, float *to);

/* Columns of a block of a packed matrix. */
long lorewright_columns(void);

/* One product, for tests and timings: to (M, N) = left (M, K) right (K, N). */
void lorewright_product(long M, long N, long K, const float *left, const float *right, float *to);
