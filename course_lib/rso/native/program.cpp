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
#include "structures.hpp"

#include "convolutions.hpp"
#include "layers.hpp"

enum { NOT_REDUCED = 1, UNSOUND, STUCK }; /* what can fail */

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

/* Whether each change is one of a weight of its channel: `taps` relies on that. */
static bool is_sound(const Job *job)
{
    const Rows *rows = job->rows;
    const Program *p = job->p;
    long each = 1; /* weights of a channel */
    for (int i = 0; i < p->stages[p->stage_count]; i++)
        if (p->ops[i].kind == TAPS && p->ops[i].other.slot >= 0)
            each = (long)p->ops[i].inputs * p->ops[i].taps;
    for (int i = 0; i < rows->starts[rows->rows]; i++)
        if (rows->weights[i] < 0 || rows->weights[i] / each != rows->channel)
            return false;
    return true;
}

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
   those of the second. So a mini-batch is mended and judged in one go. 0, or what failed
   (program.py has the words). */
extern "C" int run_jobs(const State *s, const Job *jobs, int count)
{
    int stages = 0, threads = jobs[count - 1].p->threads;
    for (int i = 0; i < count; i++) {
        if (!is_sound(&jobs[i]))
            return UNSOUND;
        stages = jobs[i].p->stage_count > stages ? jobs[i].p->stage_count : stages;
    }
    Pool &pool = Pool::ours();
    for (int stage = 0; stage < stages; stage++) {
        bool is_done = pool.run(blocks_of(s), threads, [=](long block, int thread) {
            for (int i = 0; i < count; i++)
                if (stage < jobs[i].p->stage_count)
                    run_stage(&jobs[i], s, stage, block, thread);
        });
        if (!is_done)
            return STUCK;
        for (int i = 0; i < count; i++)
            if (stage < jobs[i].p->stage_count && settle_stage(&jobs[i], s, stage))
                return NOT_REDUCED;
    }
    return 0;
}

/* As run_jobs, and the last job's sum of the loss of each row from first_row on. */
extern "C" int judge(const State *s, const Job *jobs, int count, double *sums)
{
    if (int failed = run_jobs(s, jobs, count))
        return failed;
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
