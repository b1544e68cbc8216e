/* Convolutions and linear layers: of all inputs, of one changed channel, of a few taps.

   All of them read a padded copy of their input. Of a whole layer, `conv` sums over taps
   as in the lines below, tile by tile, and `winograd` needs fewer products.

       for o in outputs, i in pixels:
           out[o][i] = bias[o] + sum of weights[o][c][t] * in[c][place[i] + tap[t]]
                       over c in inputs, t in taps */

#define MAX_CHANGES 32 /* that are added in one pass */

/* A padded copy of one channel. Its border is zero from the beginning. */
static void pad(const Op *op, Source in, int channel, V *out)
{
    const V *x = in.data + (long)channel * op->height * op->width;
    Affine f = in.affine(channel);
    for (int h = 0; h < op->height; h++)
        for (int w = 0; w < op->width; w++)
            out[(h + op->top) * op->padded_width + w + op->left] = f(x[h * op->width + w]);
}

/* Whether taps read a padded copy directly. */
static bool is_arranged(const Op *op)
{
    return op->box_height * op->box_width * op->step_row * op->step_column == 1;
}

/* Every step_column-th pixel of a row, averaged over a box. */
static inline void average(const Op *op, const V *from, int columns, int box_height,
                           int box_width, V *out)
{
    int box_row = op->box_row * op->padded_width;
    V factor = broadcast((REAL)1 / (box_height * box_width));
    for (int x = 0; x < columns; x++) {
        const V *corner = from + x * op->step_column;
        V sum = {};
        for (int u = 0; u < box_height; u++)
            for (int v = 0; v < box_width; v++)
                sum += corner[u * box_row + v * op->box_column];
        out[x] = sum * factor;
    }
}

/* A row of a padded channel, [padded_height][padded_width], as taps read it,
   [step_row][step_column][rows][columns]: averaged over the boxes of a pooling that is
   folded into the layer, and the pixels that one tap reads lie side by side. */
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

/* All channels, [C][H][W] to [C][plane]. `has_border`: `out` is framed by zeros. */
static void arrange_all(const Op *op, Source in, V *padded, bool has_border, V *out)
{
    for (int c = 0; c < op->channels; c++, out += op->plane) {
        bool is_direct = has_border && is_arranged(op);
        pad(op, in, c, is_direct ? out : padded);
        if (!is_direct)
            arrange(op, padded, out);
    }
}

/* Tiles, COUNT pixels each, from pixel `i` to `end`: TILE_OUTPUTS channels at a time. One
   load for TILE_OUTPUTS multiply-adds, and the sums in registers until the end (inlined
   into `convolve`, gcc puts them into memory, which takes half as long again). */
template <int COUNT>
static void __attribute__((noinline))
conv_tiles(const Op *op, const V *in, int group, int tile, int first, int inputs, int i,
           int end, const V *start, Prefetch *next, V *out)
{
    int tiles = (op->outputs + TILE_OUTPUTS - 1) / TILE_OUTPUTS;
    int outputs = op->outputs - tile * TILE_OUTPUTS; /* of this tile */
    long o = group * op->outputs + tile * TILE_OUTPUTS;
    const REAL *bias = op->bias ? op->bias + o : 0;
    long channel = (long)(group * tiles + tile) * op->inputs + first;
    const REAL *weights = op->weights + channel * op->taps * TILE_OUTPUTS;
    long output[TILE_OUTPUTS]; /* beyond the last channel: the last */
    for (int k = 0; k < TILE_OUTPUTS; k++)
        output[k] = (o + (k < outputs ? k : outputs - 1)) * op->pixels;
    for (; i < end; i += COUNT) {
        prefetch(next, 8);
        const int *place = op->place + i;
        V sum[TILE_OUTPUTS][COUNT];
        for (int k = 0; k < TILE_OUTPUTS; k++)
            for (int n = 0; n < COUNT; n++)
                sum[k][n] = start  ? start[output[k] + i + n]
                            : bias ? broadcast(bias[k < outputs ? k : 0])
                                   : V{};
        const V *x0[COUNT];
        for (int n = 0; n < COUNT; n++)
            x0[n] = in + place[n];
        const REAL *w = weights;
        for (int c = 0; c < inputs; c++)
            for (int t = 0; t < op->taps; t++, w += TILE_OUTPUTS) {
                long from = c * op->plane + op->tap[t];
                V x[COUNT];
                for (int n = 0; n < COUNT; n++)
                    x[n] = x0[n][from];
                for (int k = 0; k < TILE_OUTPUTS; k++)
                    for (int n = 0; n < COUNT; n++)
                        sum[k][n] += w[k] * x[n];
            }
        for (int k = TILE_OUTPUTS; k--;) /* backward: the last channel has the last word */
            for (int n = 0; n < COUNT; n++)
                out[output[k] + i + n] = sum[k][n];
    }
}

/* From the `inputs` channels of `in`, [inputs][plane], which are those from `first` on
   among the layer's, on top of `start` or the bias. With many, the inputs of a tile are
   used for all outputs while they are in the nearest cache; with one, the outputs stay
   there. */
static void convolve(const Op *op, const V *in, int first, int inputs, const V *start,
                     Prefetch *next, V *out)
{
    int tiles = (op->outputs + TILE_OUTPUTS - 1) / TILE_OUTPUTS;
    int wide = op->pixels / TILE_PIXELS * TILE_PIXELS;
    int step = inputs == 1 ? wide : TILE_PIXELS;
    for (int group = 0; group < op->groups; group++, in += inputs * op->plane) {
        for (int i = 0; i < wide; i += step)
            for (int tile = 0; tile < tiles; tile++)
                conv_tiles<TILE_PIXELS>(op, in, group, tile, first, inputs, i, i + step,
                                        start, next, out);
        for (int tile = 0; tile < tiles; tile++)
            conv_tiles<1>(op, in, group, tile, first, inputs, wide, op->pixels, start,
                          next, out);
    }
}

static void conv(const Op *op, Source in, V *scratch, Prefetch *next, V *out)
{
    V *arranged = scratch + op->padded_height * op->padded_width;
    arrange_all(op, in, scratch, true, arranged);
    convolve(op, arranged, 0, op->inputs, 0, next, out);
}

/* A 3x3 convolution in fewer products, after Winograd: a patch of 6x6 numbers and the
   kernel are both transformed to 36, these are multiplied one by one, and the products
   are transformed to 4x4 outputs. 36 products take the place of 144. (F(4x4, 3x3) of
   Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks".) */
template <int PAIR> /* outputs 0 and 5, or 1 and 2, or 3 and 4: they share terms */
static inline void input_pair(const V *d, int stride, V *one, V *other)
{
    if (PAIR == 0) {
        *one = 4 * d[0] - 5 * d[2 * stride] + d[4 * stride];
        *other = 4 * d[stride] - 5 * d[3 * stride] + d[5 * stride];
    } else {
        V even = PAIR == 1 ? d[4 * stride] - 4 * d[2 * stride]
                           : d[4 * stride] - d[2 * stride];
        V odd = PAIR == 1 ? d[3 * stride] - 4 * d[stride]
                          : 2 * (d[3 * stride] - d[stride]);
        *one = even + odd;
        *other = even - odd;
    }
}

static inline void input_transform(const V *d, V *out)
{
    const int s = TILE_PATCHES;
    input_pair<0>(d, 1, out, out + 5 * s);
    input_pair<1>(d, 1, out + s, out + 2 * s);
    input_pair<2>(d, 1, out + 3 * s, out + 4 * s);
}

/* Two rows of a transformed patch: the numbers between stay in the registers, where all
   36 would not fit. */
template <int PAIR> static inline void input_rows(const V *d, int width, V *one, V *other)
{
    V x[6], y[6];
    for (int j = 0; j < 6; j++)
        input_pair<PAIR>(d + j, width, x + j, y + j);
    input_transform(x, one);
    input_transform(y, other);
}

static inline void output_transform(const V *m, int stride, V *out, int out_stride)
{
    V sum1 = m[stride] + m[2 * stride], difference1 = m[stride] - m[2 * stride];
    V sum2 = m[3 * stride] + m[4 * stride], difference2 = m[3 * stride] - m[4 * stride];
    out[0] = m[0] + sum1 + sum2;
    out[out_stride] = difference1 + 2 * difference2;
    out[2 * out_stride] = sum1 + 4 * sum2;
    out[3 * out_stride] = difference1 + 8 * difference2 + m[5 * stride];
}

/* The products of COUNT patches: [inputs][36][TILE_PATCHES] to
   [outputs][36][TILE_PATCHES]. */
template <int COUNT>
static void products(const Op *op, const V *in, Prefetch *next, V *out)
{
    const REAL *w = op->weights;
    for (int f = 0; f < 36; f++) {
        prefetch(next, 24);
        for (int o = 0; o < op->outputs; o += WINOGRAD_OUTPUTS) {
            V sum[WINOGRAD_OUTPUTS][COUNT] = {};
            const V *x = in + f * TILE_PATCHES;
#pragma GCC unroll 4 /* else counting takes a fifth of the time */
            for (int c = 0; c < op->inputs; c++, x += 36 * TILE_PATCHES) {
                for (int k = 0; k < WINOGRAD_OUTPUTS; k++)
                    for (int i = 0; i < COUNT; i++)
                        sum[k][i] += w[k] * x[i];
                w += WINOGRAD_OUTPUTS;
            }
            for (int k = 0; k < WINOGRAD_OUTPUTS && o + k < op->outputs; k++)
                for (int i = 0; i < COUNT; i++)
                    out[((o + k) * 36 + f) * TILE_PATCHES + i] = sum[k][i];
        }
    }
}

/* All patches: [C][H][W] to [patches / TILE_PATCHES][C][36][TILE_PATCHES]. */
static void transform_inputs(const Op *op, Source in, V *padded, V *out)
{
    int patches = op->rows * op->columns, tile = 36 * TILE_PATCHES;
    for (int c = 0; c < op->inputs; c++) {
        pad(op, in, c, padded);
        for (int n = 0; n < patches; n++) {
            const V *from = padded + n / op->columns * 4 * op->padded_width
                            + n % op->columns * 4;
            V *to = out + (n / TILE_PATCHES * op->inputs + c) * tile + n % TILE_PATCHES;
            const int row = 6 * TILE_PATCHES;
            input_rows<0>(from, op->padded_width, to, to + 5 * row);
            input_rows<1>(from, op->padded_width, to + row, to + 2 * row);
            input_rows<2>(from, op->padded_width, to + 3 * row, to + 4 * row);
        }
    }
}

/* The 4x4 outputs of patch `n`, cut at the edges, from its 36 products. */
static inline void transform_outputs(const Op *op, const V *product, int n, V bias,
                                     V *out)
{
    int width = op->width + 2 * op->left - 2, height = op->height + 2 * op->top - 2;
    int y = n / op->columns * 4, x = n % op->columns * 4;
    V between[24], patch[16];
    for (int k = 0; k < 6; k++)
        output_transform(product + 6 * k * TILE_PATCHES, TILE_PATCHES, between + 4 * k, 1);
    for (int k = 0; k < 4; k++)
        output_transform(between + k, 4, patch + k, 4);
    for (int v = 0; v < 4 && y + v < height; v++)
        for (int u = 0; u < 4 && x + u < width; u++)
            out[(y + v) * width + x + u] = patch[4 * v + u] + bias;
}

/* The scratch holds a padded channel, all patches, and the products of a tile. */
static void winograd(const Op *op, Source in, V *scratch, Prefetch *next, V *out)
{
    int patches = op->rows * op->columns, tile = 36 * TILE_PATCHES;
    V *transformed = scratch + op->padded_height * op->padded_width;
    V *product = transformed
                 + (patches + TILE_PATCHES - 1) / TILE_PATCHES * op->inputs * tile;
    transform_inputs(op, in, scratch, transformed);
    for (int first = 0; first < patches; first += TILE_PATCHES) {
        const V *from = transformed + first * op->inputs * 36;
        int count = patches - first < TILE_PATCHES ? patches - first : TILE_PATCHES;
        if (count == TILE_PATCHES)
            products<TILE_PATCHES>(op, from, next, product);
        else
            for (int i = 0; i < count; i++)
                products<1>(op, from + i, next, product + i);
        for (int o = 0; o < op->outputs; o++)
            for (int i = 0; i < count; i++)
                transform_outputs(op, product + o * tile + i, first + i,
                                  broadcast(op->bias ? op->bias[o] : 0),
                                  out + o * op->pixels);
    }
}

/* What a change of one channel adds to all outputs of the next layer. */
static void spread(const Op *op, Source before, Source after, int channel,
                   const V *start, V *scratch, Prefetch *next, V *out)
{
    Affine f = after.affine(0), f0 = before.affine(0);
    f0.floor = f.floor;
    for (int h = 0; h < op->height; h++)
        for (int w = 0; w < op->width; w++) {
            int i = h * op->width + w;
            scratch[(h + op->top) * op->padded_width + w + op->left]
                = f(after.data[i]) - f0(before.data[i]);
        }
    V *arranged = scratch;
    if (!is_arranged(op))
        arrange(op, scratch, arranged += op->padded_height * op->padded_width);
    int inputs = op->inputs / op->channels; /* a flattened image has one each pixel */
    convolve(op, arranged, channel * inputs, inputs, start, next, out);
}

/* sum[k] += w[t] * in[place[k] + tap[t]] over all t, at COUNT pixels. */
template <int COUNT>
static inline void add_taps(const V *in, const int *place, const REAL *w, const int *tap,
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

static void add_all_taps(const V *in, const int *place, const REAL *w, const int *tap,
                         int taps, int pixels, V *sum)
{
    int i = 0;
    for (; i + 4 <= pixels; i += 4)
        add_taps<4>(in, place + i, w, tap, taps, sum + i);
    for (; i < pixels; i++)
        add_taps<1>(in, place + i, w, tap, taps, sum + i);
}

/* A channel of the swept layer's input, which is not stored: computed from what the layer
   before reads, row by row while these are in the nearest cache. `ready` is the channel
   that the scratch already holds. */
static const V *recompute(const Context &ctx, const Op *op, int channel, int *ready)
{
    V *padded = at(ctx, op->scratch, 0);
    V *out = padded + op->padded_height * op->padded_width;
    if (*ready == channel)
        return out;
    *ready = channel;
    const V *in = at(ctx, op->input.slot, 0);
    const REAL *weights = op->weights + (long)channel * op->inputs * op->taps;
    V bias = broadcast(op->bias ? op->bias[channel] : 0);
    Affine f = {broadcast(1), broadcast(0), broadcast(op->other.floor)};
    if (op->other.slot >= 0) {
        const V *affine = at(ctx, op->other.slot, 0); /* [C][2] */
        f.scale = affine[2 * channel];
        f.shift = affine[2 * channel + 1];
    }
    int done = 0;
    for (int y = 0; y < op->height; y++) {
        V *row = padded + (y + op->top) * op->padded_width + op->left;
        for (int x = 0; x < op->width; x++)
            row[x] = bias;
        for (int c = 0; c < op->inputs; c++)
            add_all_taps(in + c * op->plane, op->place + y * op->width,
                         weights + c * op->taps, op->tap, op->taps, op->width, row);
        for (int x = 0; x < op->width; x++)
            row[x] = f(row[x]);
        int ends = y + 1 == op->height ? op->padded_height : y + op->top + 1;
        for (; done < rows_above(op, ends); done++)
            arrange_row(op, padded, done, out);
    }
    return out;
}

/* Add one row's changes from number `i` on that belong to one input, or at most
   MAX_CHANGES of them; return the number of the next. */
static int add_changes(const Context &ctx, const Op *op, int i, int end, int *ready,
                       V *out)
{
    const RowChanges *rows = ctx.rows;
    if (op->other.slot < 0) { /* of a bias, or a shift */
        for (int j = 0; j < op->pixels; j++)
            out[j] += (REAL)rows->changes[i];
        return i + 1;
    }
    int first = rows->channel * op->inputs * op->taps, count = 0, tap[MAX_CHANGES];
    int input = (rows->weights[i] - first) / op->taps;
    REAL change[MAX_CHANGES];
    for (; i < end && count < MAX_CHANGES; i++, count++) {
        int within = rows->weights[i] - first - input * op->taps;
        if (within < 0 || within >= op->taps)
            break;
        tap[count] = op->tap[within];
        change[count] = (REAL)rows->changes[i];
    }
    input += op->outputs ? rows->channel / op->outputs * op->inputs : 0; /* its group */
    const V *x = op->recompute ? recompute(ctx, op->recompute, input, ready)
                               : at(ctx, op->other.slot, 0) + input * op->plane;
    add_all_taps(x, op->place, change, tap, count, op->pixels, out);
    return i;
}

/* The candidates' planes, [rows][pixels]: that of the base plus each change times its
   input. Of row 0, the stored plane, or the bias plus all weights times their inputs. */
static void perturb(const Context &ctx, const Op *op)
{
    const RowChanges *rows = ctx.rows;
    const V *plane = at(ctx, op->input.slot, 0) + (long)rows->channel * op->pixels;
    V bias = broadcast(op->bias ? op->bias[rows->channel] : 0);
    int ready = -1;
    for (int r = 0; r < rows->rows; r++) {
        V *out = at(ctx, op->out, r);
        const V *base = r ? at(ctx, op->out, r <= rows->base ? 0 : rows->base) : plane;
        if (r || !(op->flags & FROM_SCRATCH))
            memcpy(out, base, op->pixels * sizeof(V));
        else
            for (int j = 0; j < op->pixels; j++)
                out[j] = bias;
        for (int i = rows->starts[r], end = rows->starts[r + 1]; i < end;)
            i = add_changes(ctx, op, i, end, &ready, out);
    }
}
