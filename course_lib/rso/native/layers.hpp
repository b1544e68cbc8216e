/* Layers that are no convolution: copies, sums, poolings, statistics, the loss. */

static void copy(const Op *op, Source in, V *out)
{
    int C = op->channels, HW = op->height * op->width;
    for (int c = 0; c < C; c++) {
        Affine f = in.affine(c);
        for (int i = c * HW; i < (c + 1) * HW; i++)
            out[i] = f(in.data[i]);
    }
}

static void add(const Op *op, Source in, Source other, V *out)
{
    int C = op->channels, HW = op->height * op->width;
    for (int c = 0; c < C; c++) {
        Affine f = in.affine(c), g = other.affine(c);
        for (int i = c * HW; i < (c + 1) * HW; i++)
            out[i] = f(in.data[i]) + g(other.data[i]);
    }
}

/* The larger number, or nan if one is. */
static inline V larger(V x, V y) { return (y > x) | (y != y) ? y : x; }

static void max_pool(const Op *op, Source in, V *out)
{
    for (int c = 0; c < op->channels; c++) {
        const V *plane = in.data + (long)c * op->height * op->width;
        Affine f = in.affine(c);
        for (int i = 0; i < op->pixels; i++) {
            const V *x = plane + op->place[i];
            V first = f.linear(x[op->tap[0]]), best[4] = {first, first, first, first};
            int t = 1;
            for (; t + 4 <= op->taps; t += 4) /* four: a comparison waits for the last */
                for (int k = 0; k < 4; k++)
                    best[k] = larger(best[k], f.linear(x[op->tap[t + k]]));
            for (; t < op->taps; t++)
                best[0] = larger(best[0], f.linear(x[op->tap[t]]));
            V maximum = larger(larger(best[0], best[1]), larger(best[2], best[3]));
            out[c * op->pixels + i] = clamp_min(maximum, f.floor);
        }
    }
}

static void average_pool(const Op *op, Source in, V *out)
{
    V factor = broadcast((REAL)1 / op->taps);
    for (int c = 0; c < op->channels; c++) {
        const V *plane = in.data + (long)c * op->height * op->width;
        Affine f = in.affine(c);
        for (int i = 0; i < op->pixels; i++) {
            V sum = {};
            for (int t = 0; t < op->taps; t++)
                sum += f(plane[op->place[i] + op->tap[t]]);
            out[c * op->pixels + i] = sum * factor;
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

/* 1 for the first `count` lanes, 0 for the others. */
static V mask(long count)
{
    V lanes = {};
    for (int l = 0; l < LANES; l++)
        lanes[l] = l < count;
    return lanes;
}

struct Sums {
    V deviations, squares;
};

/* The sums of x - center and of its squares, each in four parts: an addition waits for
   the one before it. */
static Sums sums_around(const V *x, int count, V center)
{
    V deviations[4] = {}, squares[4] = {};
    int i = 0;
    for (; i + 4 <= count; i += 4)
        for (int k = 0; k < 4; k++) {
            V deviation = x[i + k] - center;
            deviations[k] += deviation;
            squares[k] += deviation * deviation;
        }
    for (; i < count; i++) {
        V deviation = x[i] - center;
        deviations[0] += deviation;
        squares[0] += deviation * deviation;
    }
    return Sums{(deviations[0] + deviations[1]) + (deviations[2] + deviations[3]),
                (squares[0] + squares[1]) + (squares[2] + squares[3])};
}

/* Mean and squared deviations of each channel, of the `count` samples of a block: in one
   pass around the mean of another row, which is near, or else in two. */
static void stats(const Op *op, const V *in, long count, const double *near,
                  double *parts)
{
    int HW = op->height * op->width;
    double n = (double)count * HW;
    V lanes = mask(count);
    for (int c = 0; c < op->channels; c++, in += HW, parts += 2) {
        double center = near ? near[2 * c]
                             : total(sums_around(in, HW, V{}).deviations * lanes) / n;
        center = (REAL)center;
        Sums sums = sums_around(in, HW, broadcast((REAL)center));
        double deviation = total(sums.deviations * lanes);
        double squares = total(sums.squares * lanes) - deviation * deviation / n;
        parts[0] = center + deviation / n;
        parts[1] = squares < 0 ? 0 : squares; /* nan stays */
    }
}

/* exp of numbers <= 0, to the last bit or two. For float: 2^round(x / ln 2) times a
   polynomial of the rest, as in Cephes (https://www.netlib.org/cephes/). */
static V exponential(V x)
{
#ifdef IS_DOUBLE
    V y = x;
    for (int l = 0; l < LANES; l++)
        y[l] = exp(x[l]);
    return y;
#else
    typedef int I __attribute__((vector_size(VECTOR_BYTES)));
    x = x < -87.0f ? broadcast(-87.0f) : x;
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
    V maximum = x[0], sum = {};
    for (int c = 1; c < op->channels; c++)
        maximum = (x[c] > maximum) | (x[c] != x[c]) ? x[c] : maximum;
    for (int c = 0; c < op->channels; c++)
        sum += exponential(x[c] - maximum);
    double losses = 0;
    for (int l = 0; l < count; l++) {
        double logit = (double)x[labels[l]][l] - maximum[l];
        losses += (maximum[l] != maximum[l] ? NAN : log((double)sum[l])) - logit;
    }
    return losses;
}
