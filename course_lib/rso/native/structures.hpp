/* What program.cpp reads, field by field as in structures.py, and where a value lies.

   Compiled for REAL float or double. */

#if defined(__AVX512F__)
#define WIDTH 64
#elif defined(__AVX__)
#define WIDTH 32
#else
#define WIDTH 16
#endif

#if defined(__AVX__) && !defined(__AVX512F__)
#define OUTPUTS 4 /* of a tile: its sums stay in the registers, of which AVX has 16 */
#else
#define OUTPUTS 8
#endif
#define PIXELS 3 /* of a tile */
#ifdef __AVX512F__
#define PATCHES 4 /* of a tile of WINOGRAD */
#else
#define PATCHES 2
#endif

#define LANES ((int)(WIDTH / sizeof(REAL)))

typedef REAL V __attribute__((vector_size(WIDTH)));

enum { COPY, ADD, MAX_POOL, AVERAGE_POOL, STATS, CONV, TAPS, SPREAD, FILL, LOSS, ARRANGE,
       WINOGRAD, RECALL };
enum { TAIL = 1, AGAIN = 2, ANEW = 4 }; /* see Op.flags */

/* Where a value lies. With a state alone it is the same for all candidates; with both,
   the state's is that of the base. Strides count vectors. */
typedef struct {
    V *data;
    long row, block, thread;
    int state;
    long state_block;
} Slot;

/* What is read: max(scale * x + shift, floor); norm < 0 stands for 1 * x + 0. */
typedef struct {
    int slot, norm, picks; /* picks: of all channels, the one whose weight is judged */
    double floor;
} Operand;

/* TAIL: not for rows without a loss. AGAIN: the state's value is up to date already.
   ANEW: no planes are remembered, for row 0 lists all weights of the channel.
   Of SPREAD, `channels` are those of the layer's whole input, and of TAPS, `groups`,
   `inputs` and `outputs` are the swept layer's. Of WINOGRAD, `rows` and `columns` are
   those of its patches, and weights are [36][outputs / QUARTET][inputs][QUARTET].
   Of RECALL, `place`, `tap` and `plane` are those of the layer that computes the channel,
   weights are [outputs][inputs * taps], `other` is the scales and shifts of its norm and
   has the floor, and the rest says how the channel comes to lie as TAPS reads it. */
typedef struct Op {
    int kind, out, flags, norm;
    Operand in, other;
    int channels, height, width;                /* of the operand */
    int top, left, padded_height, padded_width; /* of its padded copy */
    int box_height, box_width, box_row, box_column; /* averaged over, if above 1 */
    int step_row, step_column, rows, columns; /* of the phases; see arrange */
    int scratch;                              /* slot of such copies, or -1 */
    int groups, inputs, outputs;              /* inputs and outputs of one group */
    int pixels, taps;
    long plane; /* of one channel's arranged copy, in vectors */
    const int *place; /* of each output pixel's first tap in the arranged plane */
    const int *tap;   /* offset of each tap from there */
    const REAL *weights; /* [groups][outputs / OUTPUTS][inputs][taps][OUTPUTS] */
    const REAL *bias;
    const struct Op *recall; /* of TAPS: how a channel of its input is computed anew */
} Op;

typedef struct {
    int channels, pixels, picks;
    double eps;
    const double *gamma, *beta;
    double *parts; /* [rows][blocks][channels][2]: mean, and squares around it */
    REAL *affine;  /* [rows][channels][2]: scale, shift */
} Norm;

typedef int (*Reduce)(double *sums, long count);

typedef struct {
    const Slot *slots;
    const Op *ops;
    const int *stages; /* first operation of each, and the end */
    const Norm *norms;
    int stage_count, norm_count, threads;
    Reduce reduce; /* adds the other processes' sums, or NULL */
    double *sums;   /* memory for that */
    double *losses; /* [rows][blocks] */
} Program;

typedef struct {
    V *const *values;
    const int *labels;
    long batch;
} State;

/* Weights that change in each row: those from starts[row] to starts[row + 1]. With ANEW,
   row 0 lists all weights of the channel, else none. */
typedef struct {
    int channel, rows, base, first_row;
    const int *starts, *weights; /* numbered as in the parameter */
    const double *changes;
} Rows;

/* What is done to a mini-batch: a program, and the rows it is run for. */
typedef struct {
    const Program *p;
    const Rows *rows;
} Job;

extern "C" {
int lanes(void) { return LANES; }
int tile_outputs(void) { return OUTPUTS; }
int tile_patches(void) { return PATCHES; }

/* For structures.py, which describes them once more: the size of each, in its order. */
long structure_size(int number)
{
    const long sizes[] = { sizeof(Slot),    sizeof(Operand), sizeof(Op),   sizeof(Norm),
                           sizeof(Program), sizeof(State),   sizeof(Rows), sizeof(Job) };
    return sizes[number];
}
}

static inline V splat(REAL x) { return x - V{}; }

/* What a thread fetches from far memory while it computes: lines of 64 bytes. */
typedef struct {
    const char *read, *read_end;
    char *written, *written_end;
} Ahead;

static inline void fetch(Ahead *ahead, int lines)
{
    for (int i = 0; i < lines && ahead->read < ahead->read_end; i++, ahead->read += 64)
        __builtin_prefetch(ahead->read, 0, 2);
    for (int i = 0; i < lines && ahead->written < ahead->written_end; i++) {
        __builtin_prefetch(ahead->written, 1, 2);
        ahead->written += 64;
    }
}

/* One row of one block. */
typedef struct {
    const Program *p;
    const State *s;
    const Rows *rows;
    int row;
    long block;
    int thread;
    Ahead *ahead;
} Turn;

static long blocks_of(const State *s) { return (s->batch + LANES - 1) / LANES; }

static V *at(const Turn &t, int slot, int row)
{
    const Slot *v = &t.p->slots[slot];
    if (v->state >= 0 && (row <= t.rows->base || !v->data))
        return t.s->values[v->state] + t.block * v->state_block;
    return v->data + row * v->row + t.block * v->block + t.thread * v->thread;
}

/* An operand at one row and block, ready to be read channel by channel. */
typedef struct {
    const V *data;
    const REAL *affine;
    REAL floor;
} Source;

static Source source(const Turn &t, const Operand *operand, int row, int plane)
{
    const V *data = at(t, operand->slot, row);
    const REAL *affine = 0;
    if (operand->picks)
        data += (long)t.rows->channel * plane;
    if (operand->norm >= 0) {
        const Norm *norm = &t.p->norms[operand->norm];
        affine = norm->affine + (long)row * norm->channels * 2;
    }
    return Source{data, affine, (REAL)operand->floor};
}

static inline V scale_of(Source x, int channel)
{
    return splat(x.affine ? x.affine[2 * channel] : 1);
}

static inline V shift_of(Source x, int channel)
{
    return splat(x.affine ? x.affine[2 * channel + 1] : 0);
}

static inline V lifted(V x, V floor) { return x < floor ? floor : x; } /* keeps nan */
