/* Convolutions and linear layers: in full, of one changed channel, and of a few taps.

   Two ways to a full one: `conv` by taps, `winograd` in fewer products. Both read a
   padded copy of their input. */

#define QUARTET 4 /* outputs of a tile of WINOGRAD */
#define SOME 32 /* changes that are added in one pass */

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
