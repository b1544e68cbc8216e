/* Layers that are no convolution: copies, sums, poolings, statistics, the loss. */

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
