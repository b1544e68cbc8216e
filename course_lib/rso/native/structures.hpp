/* What Python hands to program.cpp, and where a value lies.

   structures.py reads the structures and enumerations from this file. Compiled for REAL
   float or double. In sizes, B counts blocks of LANES samples, C channels, H rows and W
   columns of a plane; sizes and strides of values count vectors. */

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define TILE_OUTPUTS 8
#define WINOGRAD_OUTPUTS 4
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define TILE_OUTPUTS 4 /* the sums of a tile stay in the registers: AVX has 16 */
#define WINOGRAD_OUTPUTS 2
#else
#define VECTOR_BYTES 16
#define TILE_OUTPUTS 8
#define WINOGRAD_OUTPUTS 2
#endif
#define TILE_PIXELS 3  /* beside TILE_OUTPUTS */
#define TILE_PATCHES 4 /* beside WINOGRAD_OUTPUTS */

#define LANES ((int)(VECTOR_BYTES / sizeof(REAL)))

typedef REAL V __attribute__((vector_size(VECTOR_BYTES)));

enum Kind {
    COPY, ADD, MAX_POOL, AVERAGE_POOL, STATS, CONV, PERTURB, SPREAD, FILL, LOSS, ARRANGE,
    WINOGRAD, RECOMPUTE
};

/* SCORED_ONLY: skip rows without a loss. STATE_CURRENT: the state's value is already up
   to date. FROM_SCRATCH: no planes are stored, row 0 lists all weights of the channel. */
enum Flag { SCORED_ONLY = 1, STATE_CURRENT = 2, FROM_SCRATCH = 4 };

enum Failure { REDUCE_FAILED = 1, BAD_CHANGE = 2, STUCK = 3 };

/* Where a value lies: in `data`, in a state's value, or in both; then the state has that
   of the base row, else it has the same value for all rows. */
struct Slot {
    V *data;
    long row, block, thread; /* strides */
    int state;
    long state_block; /* stride */
};

/* What is read: max(scale * x + shift, floor); norm < 0 stands for 1 * x + 0. */
struct Operand {
    int slot, norm, one_channel; /* one_channel: that of the changed weights alone */
    double floor;
};

/* Of SPREAD, `channels` are those of the layer's whole input; of PERTURB, `groups`,
   `inputs` and `outputs` are the swept layer's. Of WINOGRAD, `rows` and `columns` count
   patches, and weights are [36][outputs / n][inputs][n] with n WINOGRAD_OUTPUTS. Of
   RECOMPUTE, `place`, `tap` and `plane` are those of the layer that computes the channel,
   weights are [outputs][inputs * taps], `other` is its norm's scales and shifts and has
   the floor, and the rest says how PERTURB reads the channel. */
struct Op {
    int kind, out, flags, norm;
    Operand input, other;
    int channels, height, width;                /* of the operand */
    int top, left, padded_height, padded_width; /* of its padded copy */
    int box_height, box_width, box_row, box_column; /* averaged over, if above 1 */
    int step_row, step_column, rows, columns; /* of the phases; see arrange_row */
    int scratch;                              /* slot of such copies, or -1 */
    int groups, inputs, outputs;              /* inputs and outputs of one group */
    int pixels, taps;
    long plane;          /* vectors of one channel's arranged copy */
    const int *place;    /* [pixels]: the first tap in the arranged plane */
    const int *tap;      /* [taps]: offset from there */
    const REAL *weights; /* [groups][outputs / TILE_OUTPUTS][inputs][taps][TILE_OUTPUTS] */
    const REAL *bias;
    const Op *recompute; /* of PERTURB: how a channel of its input is computed again */
};

struct Norm {
    int channels, pixels, one_channel;
    double eps;
    const double *gamma, *beta;
    double *parts; /* [rows][B][C][2]: mean, and squared deviations from it */
    REAL *affine;  /* [rows][C][2]: scale, shift */
};

typedef int (*Reduce)(double *sums, long count);

/* Weights that change in each row: those from starts[row] to starts[row + 1], numbered
   as in the parameter. */
struct RowChanges {
    int channel, rows, base, first_row;
    const int *starts, *weights;
    const double *changes;
};

/* A program: its operations, stage by stage, and the rows that they are run for. */
struct Operations {
    const Slot *slots;
    const Op *ops;
    const int *stages; /* first operation of each, and the end */
    const Norm *norms;
    int stage_count, threads;
    Reduce reduce;  /* adds the other processes' sums, or NULL */
    double *sums;   /* memory for that */
    double *losses; /* [rows][B] */
    const RowChanges *rows;
};

/* What is stored of a mini-batch. */
struct State {
    V *const *values;
    const int *labels;
    long batch;
};

extern "C" {
int lanes(void) { return LANES; }
int tile_outputs(void) { return TILE_OUTPUTS; }
int tile_patches(void) { return TILE_PATCHES; }
int winograd_outputs(void) { return WINOGRAD_OUTPUTS; }

long structure_size(int number) /* in this file's order, for structures.py to compare */
{
    const long sizes[] = {sizeof(Slot), sizeof(Operand),    sizeof(Op),
                          sizeof(Norm), sizeof(RowChanges), sizeof(Operations),
                          sizeof(State)};
    return sizes[number];
}
}

static inline V broadcast(REAL x) { return x - V{}; }
static inline V clamp_min(V x, V floor) { return x < floor ? floor : x; } /* keeps nan */

/* What a thread fetches from far memory while it computes, in lines of 64 bytes. */
struct Prefetch {
    const char *read, *read_end;
    char *written, *written_end;
};

static inline void prefetch(Prefetch *next, int lines)
{
    for (int i = 0; i < lines && next->read < next->read_end; i++, next->read += 64)
        __builtin_prefetch(next->read, 0, 2);
    for (int i = 0; i < lines && next->written < next->written_end; i++) {
        __builtin_prefetch(next->written, 1, 2);
        next->written += 64;
    }
}

/* One row of one block. */
struct Context {
    const Operations *p;
    const State *s;
    const RowChanges *rows;
    int row;
    long block;
    int thread;
    Prefetch *next;
};

static long blocks_of(const State *s) { return (s->batch + LANES - 1) / LANES; }

static long samples_of(const State *s, long block)
{
    long left = s->batch - block * LANES;
    return left < LANES ? left : LANES;
}

static V *at(const Context &ctx, int slot, int row)
{
    const Slot *v = &ctx.p->slots[slot];
    if (v->state >= 0 && (row <= ctx.rows->base || !v->data))
        return ctx.s->values[v->state] + ctx.block * v->state_block;
    return v->data + row * v->row + ctx.block * v->block + ctx.thread * v->thread;
}

/* What is done to a number when it is read. */
struct Affine {
    V scale, shift, floor;
    V linear(V x) const { return x * scale + shift; }
    V operator()(V x) const { return clamp_min(linear(x), floor); }
};

/* An operand at one row and block: [C][H][W]. */
struct Source {
    const V *data;
    const REAL *scales; /* [C][2]: scale, shift; NULL stands for 1, 0 */
    REAL floor;

    Affine affine(int channel) const
    {
        REAL scale = scales ? scales[2 * channel] : 1;
        REAL shift = scales ? scales[2 * channel + 1] : 0;
        return Affine{broadcast(scale), broadcast(shift), broadcast(floor)};
    }
};

static Source source(const Context &ctx, const Operand *operand, int row, int HW)
{
    const V *data = at(ctx, operand->slot, row);
    const REAL *scales = 0;
    if (operand->one_channel)
        data += (long)ctx.rows->channel * HW;
    if (operand->norm >= 0) {
        const Norm *norm = &ctx.p->norms[operand->norm];
        scales = norm->affine + (long)row * norm->channels * 2;
    }
    return Source{data, scales, (REAL)operand->floor};
}
