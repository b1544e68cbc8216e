/* The fast engine's arithmetic in one pass: what program.py writes down is run here.

   LANES samples stand side by side in one vector, and a value of a mini-batch is an
   array of vectors, [blocks][channels][height][width]: every operation below is plain
   arithmetic on vectors, whatever the size of the image. A block is small enough to
   stay in the processor's cache while it goes through all operations of a stage. A
   stage ends where batch norm needs the sums of all blocks; what its last values need
   before they are read (scale, shift, ReLU) is done by whoever reads them.

   A candidate is a row. Row 0 is what a mini-batch remembers. Where weights of the
   channel have moved since, row 1 is what it is to remember, and the base of all other
   rows; else row 0 is that. Compiled for REAL float or double. */

#include <cmath>
#include <cstring>

#include "pool.hpp"

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

/* Weights that change in each row, in row 0 with ANEW alone: those from starts[row] to starts[row + 1]. */
typedef struct {
    int channel, rows, base, first_row;
    const int *starts, *weights; /* numbered as in the parameter */
    const double *changes;
} Rows;

extern "C" {
int lanes(void) { return LANES; }
int tile_outputs(void) { return OUTPUTS; }
int tile_patches(void) { return PATCHES; }
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

static inline V scale_of(Source x, int channel) { return splat(x.affine ? x.affine[2 * channel] : 1); }
static inline V shift_of(Source x, int channel) { return splat(x.affine ? x.affine[2 * channel + 1] : 0); }

static inline V lifted(V x, V floor) { return x < floor ? floor : x; } /* keeps nan */

static void copy(const Op *op, Source in, V *out)
{
    int plane = op->height * op->width;
    for (int c = 0; c < op->channels; c++) {
        V scale = scale_of(in, c), shift = shift_of(in, c), floor = splat(in.floor);
        for (int i = 0; i < plane; i++)
            out[c * plane + i] = lifted(in.data[c * plane + i] * scale + shift, floor);
    }
}

static void add(const Op *op, Source in, Source other, V *out)
{
    int plane = op->height * op->width;
    for (int c = 0; c < op->channels; c++) {
        V scale = scale_of(in, c), shift = shift_of(in, c), floor = splat(in.floor);
        V scale2 = scale_of(other, c), shift2 = shift_of(other, c);
        V floor2 = splat(other.floor);
        for (int i = c * plane; i < (c + 1) * plane; i++)
            out[i] = lifted(in.data[i] * scale + shift, floor)
                     + lifted(other.data[i] * scale2 + shift2, floor2);
    }
}

static void max_pool(const Op *op, Source in, V *out)
{
    for (int c = 0; c < op->channels; c++) {
        const V *plane = in.data + (long)c * op->height * op->width;
        V scale = scale_of(in, c), shift = shift_of(in, c), floor = splat(in.floor);
        for (int i = 0; i < op->pixels; i++) {
            const V *x = plane + op->place[i];
            V most = x[op->tap[0]] * scale + shift;
            for (int t = 1; t < op->taps; t++) {
                V value = x[op->tap[t]] * scale + shift;
                most = (value > most) | (value != value) ? value : most;
            }
            out[c * op->pixels + i] = lifted(most, floor);
        }
    }
}

static void average_pool(const Op *op, Source in, V *out)
{
    V share = splat((REAL)1 / op->taps);
    for (int c = 0; c < op->channels; c++) {
        const V *plane = in.data + (long)c * op->height * op->width;
        V scale = scale_of(in, c), shift = shift_of(in, c), floor = splat(in.floor);
        for (int i = 0; i < op->pixels; i++) {
            V sum = {};
            for (int t = 0; t < op->taps; t++)
                sum += lifted(plane[op->place[i] + op->tap[t]] * scale + shift, floor);
            out[c * op->pixels + i] = sum * share;
        }
    }
}

static REAL total(V x)
{
    REAL sum = 0;
    for (int l = 0; l < LANES; l++)
        sum += x[l];
    return sum;
}

static V mask(long count)
{
    V lanes = {};
    for (int l = 0; l < LANES; l++)
        lanes[l] = l < count;
    return lanes;
}

struct Sums {
    V apart, squares;
};

/* The sums of x - center and of its squares: each in four parts, for an addition has to
   wait for the one before it. */
static Sums sums_around(const V *x, int count, V center)
{
    V apart[4] = {}, squares[4] = {};
    int i = 0;
    for (; i + 4 <= count; i += 4)
        for (int k = 0; k < 4; k++) {
            V own = x[i + k] - center;
            apart[k] += own;
            squares[k] += own * own;
        }
    for (; i < count; i++) {
        V own = x[i] - center;
        apart[0] += own;
        squares[0] += own * own;
    }
    return Sums{(apart[0] + apart[1]) + (apart[2] + apart[3]),
                (squares[0] + squares[1]) + (squares[2] + squares[3])};
}

/* Mean and squares around it of each channel, of the `count` samples of a block: in one
   pass around the mean of another row, which is near, or else in two. */
static void stats(const Op *op, const V *in, long count, const double *near,
                  double *parts)
{
    int plane = op->height * op->width;
    double all = (double)count * plane;
    V counts = mask(count);
    for (int c = 0; c < op->channels; c++) {
        const V *x = in + (long)c * plane;
        double center = near ? near[2 * c]
                             : total(sums_around(x, plane, V{}).apart * counts) / all;
        center = (REAL)center;
        Sums sums = sums_around(x, plane, splat((REAL)center));
        double apart = total(sums.apart * counts);
        parts[2 * c] = center + apart / all;
        double squares = total(sums.squares * counts) - apart * apart / all;
        parts[2 * c + 1] = squares < 0 ? 0 : squares; /* nan stays */
    }
}

/* A padded copy of one channel. */
static void pad(const Op *op, const V *in, V scale, V shift, V floor, V *out)
{
    for (int y = 0; y < op->height; y++)
        for (int x = 0; x < op->width; x++)
            out[(y + op->top) * op->padded_width + x + op->left]
                = lifted(in[y * op->width + x] * scale + shift, floor);
}

/* Whether a padded copy is read as it is. */
static bool is_arranged(const Op *op)
{
    return op->box_height * op->box_width * op->step_row * op->step_column == 1;
}

/* Every step_column-th pixel of a row, averaged over a box. */
static inline void average(const Op *op, const V *from, int columns, int box_height,
                           int box_width, V *out)
{
    int box_row = op->box_row * op->padded_width;
    V share = splat((REAL)1 / (box_height * box_width));
    for (int x = 0; x < columns; x++) {
        const V *corner = from + x * op->step_column;
        V sum = {};
        for (int u = 0; u < box_height; u++)
            for (int v = 0; v < box_width; v++)
                sum += corner[u * box_row + v * op->box_column];
        out[x] = sum * share;
    }
}

/* A row of a padded channel as taps read it: averaged over the boxes of a pooling that
   the layer takes in, and the pixels that one tap reads side by side. So those of a
   stride are sorted by their place within a step. */
static void arrange_row(const Op *op, const V *padded, int y, V *out)
{
    int width = op->padded_width - (op->box_width - 1) * op->box_column;
    if (y / op->step_row >= op->rows)
        return; /* no tap gets there */
    out += (y % op->step_row * op->step_column * op->rows + y / op->step_row)
           * op->columns;
    for (int x = 0; x < op->step_column; x++, out += op->rows * op->columns) {
        int columns = (width - x + op->step_column - 1) / op->step_column;
        columns = columns < op->columns ? columns : op->columns;
        const V *from = padded + y * op->padded_width + x;
        if (op->box_height == 2 && op->box_width == 2) /* known when compiling */
            average(op, from, columns, 2, 2, out);
        else
            average(op, from, columns, op->box_height, op->box_width, out);
    }
}

/* Rows of the averaged image that end above row `end` of the padded one. */
static int rows_above(const Op *op, int end)
{
    return end - (op->box_height - 1) * op->box_row;
}

static void arrange(const Op *op, const V *padded, V *out)
{
    for (int y = 0; y < rows_above(op, op->padded_height); y++)
        arrange_row(op, padded, y, out);
}

/* OUTPUTS channels at `count` pixels: one load for OUTPUTS multiply-adds, and the sums
   in registers until the end. */
template <int COUNT>
static inline void multiply(const Op *op, const V *in, int inputs, const REAL *w,
                            const int *place, const V *start, const REAL *bias, V *out,
                            int outputs)
{
    V sum[OUTPUTS][COUNT];
    for (int o = 0; o < OUTPUTS; o++)
        for (int i = 0; i < COUNT; i++) {
            sum[o][i] = V{};
            if (o < outputs && start)
                sum[o][i] = start[o * op->pixels + i];
            else if (o < outputs && bias)
                sum[o][i] = splat(bias[o]);
        }
    for (int c = 0; c < inputs; c++, in += op->plane)
        for (int t = 0; t < op->taps; t++, w += OUTPUTS) {
            V x[COUNT];
            for (int i = 0; i < COUNT; i++)
                x[i] = in[place[i] + op->tap[t]];
            for (int o = 0; o < OUTPUTS; o++)
                for (int i = 0; i < COUNT; i++)
                    sum[o][i] += w[o] * x[i];
        }
    for (int o = 0; o < OUTPUTS; o++)
        if (o < outputs)
            for (int i = 0; i < COUNT; i++)
                out[o * op->pixels + i] = sum[o][i];
}

/* One tile: COUNT pixels from `i` on. */
template <int COUNT>
static void output(const Op *op, const V *in, int group, int tile, int first, int inputs,
                   int i, const V *start, V *out)
{
    int tiles = (op->outputs + OUTPUTS - 1) / OUTPUTS;
    int o = group * op->outputs + tile * OUTPUTS;
    long at = ((long)(group * tiles + tile) * op->inputs + first) * op->taps;
    long to = (long)o * op->pixels + i;
    multiply<COUNT>(op, in, inputs, op->weights + at * OUTPUTS, op->place + i,
                    start ? start + to : 0, op->bias ? op->bias + o : 0, out + to,
                    op->outputs - tile * OUTPUTS);
}

/* From the `inputs` channels of `in` that stand from `first` on among the layer's. With
   many, the inputs of a tile are used for all outputs while they are in the nearest
   cache; with one, it is the outputs that should stay there. */
static void convolve(const Op *op, const V *in, int first, int inputs, const V *start,
                     Ahead *ahead, V *out)
{
    int tiles = (op->outputs + OUTPUTS - 1) / OUTPUTS;
    int wide = op->pixels / PIXELS, all = wide + op->pixels % PIXELS;
    bool is_one = inputs == 1;
    for (int group = 0; group < op->groups; group++, in += inputs * op->plane)
        for (int n = 0; n < tiles * all; n++) {
            int tile = is_one ? n / all : n % tiles, place = is_one ? n % all : n / tiles;
            fetch(ahead, 8);
            if (place < wide)
                output<PIXELS>(op, in, group, tile, first, inputs, place * PIXELS, start,
                               out);
            else
                output<1>(op, in, group, tile, first, inputs,
                          place - wide + wide * PIXELS, start, out);
        }
}

/* All channels as taps read them; what is not `framed` by zeros yet will be. */
static void arrange_all(const Op *op, Source in, V *padded, bool framed, V *out)
{
    for (int c = 0; c < op->channels; c++, out += op->plane) {
        V *own = framed && is_arranged(op) ? out : padded;
        pad(op, in.data + (long)c * op->height * op->width, scale_of(in, c),
            shift_of(in, c), splat(in.floor), own);
        if (own == padded)
            arrange(op, padded, out);
    }
}

static void conv(const Op *op, Source in, V *scratch, Ahead *ahead, V *out)
{
    V *arranged = scratch + op->padded_height * op->padded_width;
    arrange_all(op, in, scratch, true, arranged);
    convolve(op, arranged, 0, op->inputs, 0, ahead, out);
}

/* A convolution of 3x3 in fewer products, after Winograd: a patch of 6x6 numbers and the
   kernel are both turned into 36, these are multiplied one by one, and what comes out is
   turned back into 4x4 outputs. 36 products take the place of 144. (F(4x4, 3x3) of
   Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", 2016.) */
#define QUARTET 4
#define SOME 32 /* changes that are added in one pass */

static inline void turn(const V *d, int step, V *out, int apart)
{
    V even = d[4 * step] - 4 * d[2 * step], odd = d[3 * step] - 4 * d[step];
    V near = d[4 * step] - d[2 * step], far = 2 * (d[3 * step] - d[step]);
    out[0] = 4 * d[0] - 5 * d[2 * step] + d[4 * step];
    out[apart] = even + odd;
    out[2 * apart] = even - odd;
    out[3 * apart] = near + far;
    out[4 * apart] = near - far;
    out[5 * apart] = 4 * d[step] - 5 * d[3 * step] + d[5 * step];
}

static inline void turn_back(const V *m, int step, V *out, int apart)
{
    V both = m[step] + m[2 * step], apart1 = m[step] - m[2 * step];
    V both2 = m[3 * step] + m[4 * step], apart2 = m[3 * step] - m[4 * step];
    out[0] = m[0] + both + both2;
    out[apart] = apart1 + 2 * apart2;
    out[2 * apart] = both + 4 * both2;
    out[3 * apart] = apart1 + 8 * apart2 + m[5 * step];
}

/* The products of COUNT patches: from [inputs][36][PATCHES] to [outputs][36][PATCHES]. */
template <int COUNT>
static void products(const Op *op, const V *in, Ahead *ahead, V *out)
{
    const REAL *w = op->weights;
    for (int f = 0; f < 36; f++) {
        fetch(ahead, 24);
        for (int o = 0; o < op->outputs; o += QUARTET) {
            V sum[QUARTET][COUNT] = {};
            const V *x = in + f * PATCHES;
            for (int c = 0; c < op->inputs; c++, x += 36 * PATCHES, w += QUARTET)
                for (int k = 0; k < QUARTET; k++)
                    for (int i = 0; i < COUNT; i++)
                        sum[k][i] += w[k] * x[i];
            for (int k = 0; k < QUARTET && o + k < op->outputs; k++)
                for (int i = 0; i < COUNT; i++)
                    out[((o + k) * 36 + f) * PATCHES + i] = sum[k][i];
        }
    }
}

/* The scratch holds a padded channel, all patches, and the products of a tile. */
static void winograd(const Op *op, Source in, V *scratch, Ahead *ahead, V *out)
{
    int patches = op->rows * op->columns, width = op->width + 2 * op->left - 2;
    int height = op->height + 2 * op->top - 2, tile = 36 * PATCHES;
    V *turned = scratch + op->padded_height * op->padded_width, between[36];
    V *multiplied = turned + (patches + PATCHES - 1) / PATCHES * op->inputs * tile;
    for (int c = 0; c < op->inputs; c++) {
        pad(op, in.data + (long)c * op->height * op->width, scale_of(in, c),
            shift_of(in, c), splat(in.floor), scratch);
        for (int n = 0; n < patches; n++) {
            const V *from = scratch + n / op->columns * 4 * op->padded_width
                            + n % op->columns * 4;
            V *to = turned + (n / PATCHES * op->inputs + c) * tile + n % PATCHES;
            for (int i = 0; i < 6; i++)
                turn(from + i, op->padded_width, between + i, 6);
            for (int i = 0; i < 6; i++)
                turn(between + 6 * i, 1, to + 6 * i * PATCHES, PATCHES);
        }
    }
    for (int first = 0; first < patches; first += PATCHES) {
        const V *own = turned + first * op->inputs * 36;
        int count = patches - first < PATCHES ? patches - first : PATCHES;
        if (count == PATCHES)
            products<PATCHES>(op, own, ahead, multiplied);
        else
            for (int i = 0; i < count; i++)
                products<1>(op, own + i, ahead, multiplied + i);
        for (int o = 0; o < op->outputs; o++)
            for (int i = 0; i < count; i++) {
                int y = (first + i) / op->columns * 4, x = (first + i) % op->columns * 4;
                V found[16];
                for (int k = 0; k < 6; k++)
                    turn_back(multiplied + o * tile + 6 * k * PATCHES + i, PATCHES,
                              between + k * 4, 1);
                for (int k = 0; k < 4; k++)
                    turn_back(between + k, 4, found + k, 4);
                V bias = splat(op->bias ? op->bias[o] : 0);
                for (int v = 0; v < 4 && y + v < height; v++)
                    for (int u = 0; u < 4 && x + u < width; u++)
                        out[o * op->pixels + (y + v) * width + x + u]
                            = found[4 * v + u] + bias;
            }
    }
}

/* What a change of one channel gives in all outputs of the next layer. */
static void spread(const Op *op, Source before, Source after, int channel,
                   const V *start, V *scratch, Ahead *ahead, V *out)
{
    V scale = scale_of(after, 0), shift = shift_of(after, 0), floor = splat(after.floor);
    V scale0 = scale_of(before, 0), shift0 = shift_of(before, 0);
    for (int y = 0; y < op->height; y++)
        for (int x = 0; x < op->width; x++) {
            int i = y * op->width + x;
            scratch[(y + op->top) * op->padded_width + x + op->left]
                = lifted(after.data[i] * scale + shift, floor)
                  - lifted(before.data[i] * scale0 + shift0, floor);
        }
    V *arranged = scratch;
    if (!is_arranged(op))
        arrange(op, scratch, arranged += op->padded_height * op->padded_width);
    int inputs = op->inputs / op->channels; /* a flattened image has one each pixel */
    convolve(op, arranged, channel * inputs, inputs, start, ahead, out);
}

/* Some taps of one input channel, at COUNT pixels. */
template <int COUNT>
static inline void weigh(const V *in, const int *place, const REAL *w, const int *tap,
                         int taps, V *sum)
{
    V own[COUNT];
    for (int k = 0; k < COUNT; k++)
        own[k] = sum[k];
    for (int t = 0; t < taps; t++)
        for (int k = 0; k < COUNT; k++)
            own[k] += w[t] * in[place[k] + tap[t]];
    for (int k = 0; k < COUNT; k++)
        sum[k] = own[k];
}

static void weigh_all(const V *in, const int *place, const REAL *w, const int *tap,
                      int taps, int pixels, V *sum)
{
    int i = 0;
    for (; i + 4 <= pixels; i += 4)
        weigh<4>(in, place + i, w, tap, taps, sum + i);
    for (; i < pixels; i++)
        weigh<1>(in, place + i, w, tap, taps, sum + i);
}

/* A channel of the swept layer's input, which is not remembered: computed from what the
   layer before reads, row by row while these are in the nearest cache. `held` is the
   channel that the scratch has already. */
static const V *recall(const Turn &t, const Op *op, int channel, int *held)
{
    V *padded = at(t, op->scratch, 0);
    V *out = padded + op->padded_height * op->padded_width;
    if (*held == channel)
        return out;
    *held = channel;
    const V *in = at(t, op->in.slot, 0);
    const REAL *weights = op->weights + (long)channel * op->inputs * op->taps;
    V bias = splat(op->bias ? op->bias[channel] : 0), floor = splat(op->other.floor);
    V scale = splat(1), shift = splat(0);
    if (op->other.slot >= 0) {
        const V *affine = at(t, op->other.slot, 0);
        scale = affine[2 * channel];
        shift = affine[2 * channel + 1];
    }
    int done = 0;
    for (int y = 0; y < op->height; y++) {
        const int *place = op->place + y * op->width;
        V *row = padded + (y + op->top) * op->padded_width + op->left;
        for (int x = 0; x < op->width; x++)
            row[x] = bias;
        for (int c = 0; c < op->inputs; c++)
            weigh_all(in + c * op->plane, place, weights + c * op->taps, op->tap,
                      op->taps, op->width, row);
        for (int x = 0; x < op->width; x++)
            row[x] = lifted(row[x] * scale + shift, floor);
        for (; done < rows_above(op, y + op->top + 1); done++)
            arrange_row(op, padded, done, out);
    }
    for (; done < rows_above(op, op->padded_height); done++)
        arrange_row(op, padded, done, out);
    return out;
}

/* The candidates' planes: the channel's, moved by each change times its input. */
static void taps(const Turn &t, const Op *op)
{
    const Rows *rows = t.rows;
    int each = op->inputs * op->taps;
    int group = op->outputs ? rows->channel / op->outputs : 0, held = -1;
    const V *plane = at(t, op->in.slot, 0) + (long)rows->channel * op->pixels;
    for (int r = 0; r < rows->rows; r++) {
        V *out = at(t, op->out, r);
        V bias = splat(op->bias ? op->bias[rows->channel] : 0);
        if (r || !(op->flags & ANEW))
            memcpy(out, r ? at(t, op->out, r <= rows->base ? 0 : rows->base) : plane,
                   op->pixels * sizeof(V));
        else
            for (int j = 0; j < op->pixels; j++)
                out[j] = bias;
        for (int i = rows->starts[r], end = rows->starts[r + 1]; i < end;) {
            if (op->other.slot < 0) { /* a bias, or a shift */
                REAL change = (REAL)rows->changes[i++];
                for (int j = 0; j < op->pixels; j++)
                    out[j] += change;
                continue;
            }
            int first = rows->channel * each, count = 0, taps[SOME];
            int input = (rows->weights[i] - first) / op->taps;
            REAL changes[SOME]; /* of this input's taps */
            for (; i < end && count < SOME; i++, count++) {
                int within = rows->weights[i] - first - input * op->taps;
                if (within < 0 || within >= op->taps)
                    break;
                taps[count] = op->tap[within];
                changes[count] = (REAL)rows->changes[i];
            }
            input += group * op->inputs;
            const V *x = op->recall ? recall(t, op->recall, input, &held)
                                    : at(t, op->other.slot, 0) + input * op->plane;
            weigh_all(x, op->place, changes, taps, count, op->pixels, out);
        }
    }
}

/* exp of numbers <= 0, to the last bit or two */
static V exponential(V x)
{
#ifdef IS_DOUBLE
    V y = x;
    for (int l = 0; l < LANES; l++)
        y[l] = exp(x[l]);
    return y;
#else
    typedef int I __attribute__((vector_size(WIDTH)));
    x = x < -87.0f ? splat(-87.0f) : x;
    V turns = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: rounds to whole numbers */
    I whole = (I)turns;
    turns -= 12582912.0f;
    V r = x - turns * 0.693359375f + turns * 2.12194440e-4f;
    V y = 1 + r + r * r * (0.5f + r * (0.166666654f + r * (0.0416657962f
          + r * (0.00833345205f + r * 0.00139819994f))));
    return (V)((I)y + (whole << 23));
#endif
}

/* The sum of -log softmax(logits)[label] over the samples of a block. */
static double loss(const Op *op, Source in, const int *labels, long count)
{
    const V *x = in.data;
    V most = x[0], sum = {};
    for (int c = 1; c < op->channels; c++)
        most = (x[c] > most) | (x[c] != x[c]) ? x[c] : most;
    for (int c = 0; c < op->channels; c++)
        sum += exponential(x[c] - most);
    double all = 0;
    for (int l = 0; l < count; l++) {
        double own = (double)x[labels[l]][l] - most[l];
        all += (most[l] != most[l] ? NAN : log((double)sum[l])) - own;
    }
    return all;
}

/* All channels, after one has changed: of the base in the state's own memory. */
static void reach(const Turn &t, const Op *op, Source in)
{
    V *own = at(t, op->out, 0), *out = at(t, op->out, t.row);
    int plane = op->height * op->width;
    if (op->kind == SPREAD) {
        Source before = source(t, &op->in, t.row > t.rows->base ? t.rows->base : 0, plane);
        V *scratch = at(t, op->scratch, 0);
        spread(op, before, in, t.rows->channel, own, scratch, t.ahead, out);
        return;
    }
    if (t.row > t.rows->base && out == own)
        return; /* what the state alone holds */
    if (out != own)
        memcpy(out, own, (long)op->outputs * plane * sizeof(V));
    copy(op, in, out + (long)t.rows->channel * plane);
}

/* Point `ahead` to what the next row reads and writes, or the next block. */
static void look_ahead(const Turn &t, const Op *op)
{
    Turn next = t;
    bool is_spread = op->kind == SPREAD; /* all rows read the same */
    if (is_spread && t.row > t.rows->base + 1)
        return; /* has been begun */
    next.row++;
    if (is_spread || next.row == t.rows->rows) {
        next.row = is_spread ? 0 : t.rows->first_row;
        next.block++;
    }
    *t.ahead = Ahead{};
    if (next.block >= blocks_of(t.s))
        return;
    int read = is_spread ? op->out : op->in.slot;
    long inputs = (long)op->channels * op->height * op->width;
    long outputs = (long)op->groups * op->outputs * op->pixels;
    const Slot *v = &t.p->slots[read], *w = &t.p->slots[op->out];
    if (v->block || v->state >= 0) {
        t.ahead->read = (const char *)at(next, read, next.row);
        t.ahead->read_end = t.ahead->read + (is_spread ? outputs : inputs) * sizeof(V);
    }
    if (!is_spread && w->block) {
        t.ahead->written = (char *)at(next, op->out, next.row);
        t.ahead->written_end = t.ahead->written + outputs * sizeof(V);
    }
}

static void run(const Turn &t, const Op *op)
{
    const Rows *rows = t.rows;
    long left = t.s->batch - t.block * LANES, count = left < LANES ? left : LANES;
    int plane = op->height * op->width;
    V *scratch = op->scratch < 0 ? 0 : at(t, op->scratch, 0);
    if (op->kind == TAPS) {
        if (t.row == 0)
            taps(t, op);
        return;
    }
    Source in = source(t, &op->in, t.row, plane);
    if (op->kind == STATS) {
        const Norm *norm = &t.p->norms[op->norm];
        int first = op->flags & TAIL ? rows->first_row : 0, size = norm->channels * 2;
        double *parts = norm->parts + t.block * size;
        long row = blocks_of(t.s) * size;
        stats(op, in.data, count, t.row > first ? parts + first * row : 0,
              parts + t.row * row);
        return;
    }
    if (op->kind == LOSS) {
        const int *labels = t.s->labels + t.block * LANES;
        t.p->losses[t.row * blocks_of(t.s) + t.block] = loss(op, in, labels, count);
        return;
    }
    if (op->kind == SPREAD || op->kind == CONV || op->kind == WINOGRAD)
        look_ahead(t, op);
    if (op->kind == SPREAD || op->kind == FILL) {
        bool is_base = t.row && t.row == rows->base && !(op->flags & AGAIN);
        if (t.row > rows->base || is_base)
            reach(t, op, in);
        return;
    }
    V *out = at(t, op->out, t.row);
    switch (op->kind) {
    case COPY: copy(op, in, out); break;
    case ADD: add(op, in, source(t, &op->other, t.row, plane), out); break;
    case MAX_POOL: max_pool(op, in, out); break;
    case AVERAGE_POOL: average_pool(op, in, out); break;
    case CONV: conv(op, in, scratch, t.ahead, out); break;
    case WINOGRAD: winograd(op, in, scratch, t.ahead, out); break;
    case ARRANGE: arrange_all(op, in, scratch, false, out); break;
    }
}

/* Put the blocks' statistics together: scale and shift of each row and channel. */
static int settle(const Program *p, const State *s, const Norm *norm, int channel,
                  int first, int rows)
{
    long blocks = blocks_of(s), size = norm->channels;
    double *sums = p->sums;
    for (int r = first; r < rows; r++)
        for (int c = 0; c < size; c++) {
            double mean = 0, squares = 0, all = (double)s->batch * norm->pixels;
            for (long b = 0; b < blocks; b++) {
                long count = s->batch - b * LANES < LANES ? s->batch - b * LANES : LANES;
                const double *part = norm->parts + ((r * blocks + b) * size + c) * 2;
                mean += part[0] * count * norm->pixels / all;
            }
            for (long b = 0; b < blocks; b++) {
                long count = s->batch - b * LANES < LANES ? s->batch - b * LANES : LANES;
                const double *part = norm->parts + ((r * blocks + b) * size + c) * 2;
                double apart = part[0] - mean;
                squares += part[1] + apart * apart * count * norm->pixels;
            }
            double *own = sums + ((r - first) * size + c) * 2;
            own[0] = mean;
            own[1] = squares / all;
            if (p->reduce) { /* what adds up over processes */
                own[0] = mean * all;
                own[1] = squares + mean * mean * all;
            }
        }
    long numbers = (rows - first) * size * 2;
    if (p->reduce) {
        sums[numbers] = (double)s->batch * norm->pixels;
        if (p->reduce(sums, numbers + 1))
            return 1;
        for (long i = 0; i < numbers; i += 2) {
            double mean = sums[i] / sums[numbers];
            double variance = sums[i + 1] / sums[numbers] - mean * mean;
            sums[i] = mean;
            sums[i + 1] = variance < 0 ? 0 : variance;
        }
    }
    for (long i = 0; i < numbers; i += 2) {
        long c = norm->picks ? channel : i / 2 % size;
        double scale = 1 / sqrt(sums[i + 1] + norm->eps);
        scale *= norm->gamma ? norm->gamma[c] : 1;
        REAL *affine = norm->affine + first * size * 2 + i;
        affine[0] = (REAL)scale;
        affine[1] = (REAL)((norm->beta ? norm->beta[c] : 0) - sums[i] * scale);
    }
    return 0;
}

/* Never taken down: its threads may outlive what the system tears down at the end. */
static Pool &pool()
{
    static Pool *own = new Pool;
    return *own;
}

/* What is done to a mini-batch: a program, and the rows it is run for. */
typedef struct {
    const Program *p;
    const Rows *rows;
} Job;

static void run_stage(const Job *job, const State *s, int stage, long block, int thread)
{
    const Program *p = job->p;
    const Op *begin = p->ops + p->stages[stage], *end = p->ops + p->stages[stage + 1];
    Ahead ahead = {};
    for (int row = 0; row < job->rows->rows; row++)
        for (const Op *op = begin; op < end; op++)
            if (row >= job->rows->first_row || !(op->flags & TAIL))
                run(Turn{p, s, job->rows, row, block, thread, &ahead}, op);
}

static int settle_stage(const Job *job, const State *s, int stage)
{
    const Program *p = job->p;
    for (int i = p->stages[stage]; i < p->stages[stage + 1]; i++)
        if (p->ops[i].kind == STATS) {
            int first = p->ops[i].flags & TAIL ? job->rows->first_row : 0;
            const Norm *norm = &p->norms[p->ops[i].norm];
            if (settle(p, s, norm, job->rows->channel, first, job->rows->rows))
                return 1;
        }
    return 0;
}

/* Run all stages of jobs, side by side: block by block those of the first job before
   those of the second. So a mini-batch is mended and judged in one go. 1 where `reduce`
   failed. */
extern "C" int run_jobs(const State *s, const Job *jobs, int count)
{
    int stages = 0, threads = jobs[count - 1].p->threads;
    for (int i = 0; i < count; i++)
        stages = jobs[i].p->stage_count > stages ? jobs[i].p->stage_count : stages;
    for (int stage = 0; stage < stages; stage++) {
        pool().run(blocks_of(s), threads, [=](long block, int thread) {
            for (int i = 0; i < count; i++)
                if (stage < jobs[i].p->stage_count)
                    run_stage(&jobs[i], s, stage, block, thread);
        });
        for (int i = 0; i < count; i++)
            if (stage < jobs[i].p->stage_count && settle_stage(&jobs[i], s, stage))
                return 1;
    }
    return 0;
}

/* As run_jobs, and the last job's sum of the loss of each row from first_row on. */
extern "C" int judge(const State *s, const Job *jobs, int count, double *sums)
{
    if (run_jobs(s, jobs, count))
        return 1;
    const Job *last = &jobs[count - 1];
    long blocks = blocks_of(s);
    for (int r = last->rows->first_row; r < last->rows->rows; r++) {
        double sum = 0;
        for (long b = 0; b < blocks; b++)
            sum += last->p->losses[r * blocks + b];
        sums[r - last->rows->first_row] = sum;
    }
    return 0;
}
