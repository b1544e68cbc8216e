/* The incremental sweep's arithmetic: what program.py records is run here.

   LANES samples stand side by side in one vector, and a value of a mini-batch is an
   array of vectors, [B][C][H][W]: every operation is plain arithmetic on vectors,
   whatever the size of the image. A block is small enough to stay in the processor's
   cache while it goes through all operations of a stage. A stage ends where batch norm
   needs the sums of all blocks; scale, shift and ReLU of its last values are applied by
   the operations that read them.

   A candidate is a row. Row 0 is what is stored of a mini-batch. Where weights of the
   channel have moved since, row 1 is what is to be stored, and the base of all other
   rows; else row 0 is the base. Compiled for REAL float or double. */

#include <cmath>
#include <cstring>

#include "pool.hpp"
#include "structures.hpp"

#include "convolutions.hpp"
#include "layers.hpp"

/* All channels, [C][H][W], after one has changed; of the base in the state's memory. */
static void spread_or_fill(const Context &ctx, const Op *op, Source in)
{
    V *stored = at(ctx, op->out, 0), *out = at(ctx, op->out, ctx.row);
    int base = ctx.rows->base, HW = op->height * op->width;
    if (op->kind == SPREAD) {
        Source before = source(ctx, &op->input, ctx.row > base ? base : 0, HW);
        spread(op, before, in, ctx.rows->channel, stored, at(ctx, op->scratch, 0),
               ctx.next, out);
        return;
    }
    if (ctx.row > base && out == stored)
        return; /* only the state has this value */
    if (out != stored)
        memcpy(out, stored, (long)op->outputs * HW * sizeof(V));
    copy(op, in, out + (long)ctx.rows->channel * HW);
}

/* Point `next` to what the next row reads and writes, or the next block. */
static void plan_prefetch(const Context &ctx, const Op *op)
{
    Context then = ctx;
    bool is_spread = op->kind == SPREAD; /* all rows read the same */
    if (is_spread && ctx.row > ctx.rows->base + 1)
        return; /* already begun */
    then.row++;
    if (is_spread || then.row == ctx.rows->rows) {
        then.row = is_spread ? 0 : ctx.rows->first_row;
        then.block++;
    }
    *ctx.next = Prefetch{};
    if (then.block >= blocks_of(ctx.s))
        return;
    int read = is_spread ? op->out : op->input.slot;
    long inputs = (long)op->channels * op->height * op->width;
    long outputs = (long)op->groups * op->outputs * op->pixels;
    const Slot *v = &ctx.p->slots[read], *w = &ctx.p->slots[op->out];
    if (v->block || v->state >= 0) {
        ctx.next->read = (const char *)at(then, read, then.row);
        ctx.next->read_end = ctx.next->read + (is_spread ? outputs : inputs) * sizeof(V);
    }
    if (!is_spread && w->block) {
        ctx.next->written = (char *)at(then, op->out, then.row);
        ctx.next->written_end = ctx.next->written + outputs * sizeof(V);
    }
}

static void run_stats(const Context &ctx, const Op *op, Source in)
{
    const Norm *norm = &ctx.p->norms[op->norm];
    int first = op->flags & SCORED_ONLY ? ctx.rows->first_row : 0;
    long block = norm->channels * 2, row = blocks_of(ctx.s) * block;
    double *parts = norm->parts + ctx.block * block;
    stats(op, in.data, samples_of(ctx.s, ctx.block),
          ctx.row > first ? parts + first * row : 0, parts + ctx.row * row);
}

static void run_loss(const Context &ctx, const Op *op, Source in)
{
    const int *labels = ctx.s->labels + ctx.block * LANES;
    ctx.p->losses[ctx.row * blocks_of(ctx.s) + ctx.block]
        = loss(op, in, labels, samples_of(ctx.s, ctx.block));
}

static void run(const Context &ctx, const Op *op)
{
    if (op->kind == PERTURB) {
        if (ctx.row == 0)
            perturb(ctx, op);
        return;
    }
    int HW = op->height * op->width, base = ctx.rows->base;
    Source in = source(ctx, &op->input, ctx.row, HW);
    V *scratch = op->scratch < 0 ? 0 : at(ctx, op->scratch, 0);
    V *out = op->out < 0 ? 0 : at(ctx, op->out, ctx.row);
    if (op->kind == SPREAD || op->kind == CONV || op->kind == WINOGRAD)
        plan_prefetch(ctx, op);
    switch (op->kind) {
    case STATS: run_stats(ctx, op, in); break;
    case LOSS: run_loss(ctx, op, in); break;
    case COPY: copy(op, in, out); break;
    case ADD: add(op, in, source(ctx, &op->other, ctx.row, HW), out); break;
    case MAX_POOL: max_pool(op, in, out); break;
    case AVERAGE_POOL: average_pool(op, in, out); break;
    case CONV: conv(op, in, scratch, ctx.next, out); break;
    case WINOGRAD: winograd(op, in, scratch, ctx.next, out); break;
    case ARRANGE: arrange_all(op, in, scratch, false, out); break;
    case SPREAD:
    case FILL:
        if (ctx.row > base || (base && ctx.row == base && !(op->flags & STATE_CURRENT)))
            spread_or_fill(ctx, op, in);
        break;
    }
}

/* Mean, and mean squared deviation, of one row and channel over all blocks. */
static void merge_blocks(const State *s, const Norm *norm, long row, int c, double *out)
{
    long B = blocks_of(s), C = norm->channels;
    const double *parts = norm->parts + (row * B * C + c) * 2; /* [B][C][2] */
    double n = (double)s->batch * norm->pixels, mean = 0, squares = 0;
    for (long b = 0; b < B; b++)
        mean += parts[b * C * 2] * samples_of(s, b) * norm->pixels / n;
    for (long b = 0; b < B; b++) {
        double deviation = parts[b * C * 2] - mean;
        squares += parts[b * C * 2 + 1]
                   + deviation * deviation * samples_of(s, b) * norm->pixels;
    }
    out[0] = mean;
    out[1] = squares / n;
}

/* Take `count` means and variances over all processes: sums add up. */
static bool reduce_moments(const Operations *p, double n, long count)
{
    double *moments = p->sums;
    for (long i = 0; i < count; i += 2) {
        moments[i + 1] = (moments[i + 1] + moments[i] * moments[i]) * n;
        moments[i] *= n;
    }
    moments[count] = n;
    if (p->reduce(moments, count + 1))
        return false;
    for (long i = 0; i < count; i += 2) {
        double mean = moments[i] / moments[count];
        double variance = moments[i + 1] / moments[count] - mean * mean;
        moments[i] = mean;
        moments[i + 1] = variance < 0 ? 0 : variance;
    }
    return true;
}

/* Scale and shift of each row and channel, from the statistics of all blocks. */
static bool finish_norm(const Operations *p, const State *s, const Op *op)
{
    const Norm *norm = &p->norms[op->norm];
    int first = op->flags & SCORED_ONLY ? p->rows->first_row : 0;
    long C = norm->channels, count = (p->rows->rows - first) * C * 2;
    for (long i = 0; i < count; i += 2)
        merge_blocks(s, norm, first + i / 2 / C, i / 2 % C, p->sums + i);
    if (p->reduce && !reduce_moments(p, (double)s->batch * norm->pixels, count))
        return false;
    for (long i = 0; i < count; i += 2) {
        long c = norm->one_channel ? p->rows->channel : i / 2 % C;
        double mean = p->sums[i], scale = 1 / sqrt(p->sums[i + 1] + norm->eps);
        scale *= norm->gamma ? norm->gamma[c] : 1;
        REAL *affine = norm->affine + first * C * 2 + i;
        affine[0] = (REAL)scale;
        affine[1] = (REAL)((norm->beta ? norm->beta[c] : 0) - mean * scale);
    }
    return true;
}

/* Whether each changed weight belongs to its channel: `perturb` relies on that. */
static bool is_sound(const Operations *p)
{
    const RowChanges *rows = p->rows;
    long each = 1; /* weights of a channel */
    for (int i = 0; i < p->stages[p->stage_count]; i++)
        if (p->ops[i].kind == PERTURB && p->ops[i].other.slot >= 0)
            each = (long)p->ops[i].inputs * p->ops[i].taps;
    for (int i = 0; i < rows->starts[rows->rows]; i++)
        if (rows->weights[i] < 0 || rows->weights[i] / each != rows->channel)
            return false;
    return true;
}

static void run_stage(const Operations *p, const State *s, int stage, long block,
                      int thread)
{
    const Op *begin = p->ops + p->stages[stage], *end = p->ops + p->stages[stage + 1];
    Prefetch next = {};
    for (int row = 0; row < p->rows->rows; row++)
        for (const Op *op = begin; op < end; op++)
            if (row >= p->rows->first_row || !(op->flags & SCORED_ONLY))
                run(Context{p, s, p->rows, row, block, thread, &next}, op);
}

static bool finish_stage(const Operations *p, const State *s, int stage)
{
    for (int i = p->stages[stage]; i < p->stages[stage + 1]; i++)
        if (p->ops[i].kind == STATS && !finish_norm(p, s, &p->ops[i]))
            return false;
    return true;
}

/* Run all stages of programs, side by side: in each block those of the first one before
   those of the second. So a mini-batch is updated and judged in one pass. Returns 0 or a
   Failure; program.py has the words. `sums`, if given, receives the last program's sum of
   the loss of each row from first_row on. */
extern "C" int run_programs(const State *s, const Operations *const *programs, int count,
                            double *sums)
{
    const Operations *last = programs[count - 1];
    int stages = 0;
    for (int i = 0; i < count; i++) {
        if (!is_sound(programs[i]))
            return BAD_CHANGE;
        int own = programs[i]->stage_count;
        stages = own > stages ? own : stages;
    }
    long B = blocks_of(s);
    Pool &pool = Pool::of_process();
    for (int stage = 0; stage < stages; stage++) {
        auto work = [=](long block, int thread) {
            for (int i = 0; i < count; i++)
                if (stage < programs[i]->stage_count)
                    run_stage(programs[i], s, stage, block, thread);
        };
        if (!pool.run(B, last->threads, work))
            return STUCK;
        for (int i = 0; i < count; i++)
            if (stage < programs[i]->stage_count && !finish_stage(programs[i], s, stage))
                return REDUCE_FAILED;
    }
    for (int r = last->rows->first_row; sums && r < last->rows->rows; r++, sums++) {
        *sums = 0;
        for (long b = 0; b < B; b++)
            *sums += last->losses[r * B + b];
    }
    return 0;
}
