/* Adam's step into new arrays: one pass over memory where copies take a second one.

   x' = x - eta m^ / (sqrt(v^) + eps), m' = beta1 m + (1 - beta1) g,
   v' = beta2 v + (1 - beta2) g g, nearly in torch's order of operations: a division by
   what is the same for all is a product here, which is quicker. */

#include <cmath>
#ifdef _OPENMP
#include <omp.h>
#endif

struct Arrays { /* of one tensor */
    const REAL *x, *g, *m, *v;
    REAL *new_x, *new_m, *new_v;
    long count, step;
};

/* Returns whether all gradients are finite. */
static bool adam(const Arrays &a, long begin, long end, double eta, double beta1,
                 double beta2, double eps)
{
    const REAL keep1 = (REAL)beta1, take1 = (REAL)(1 - beta1);
    const REAL keep2 = (REAL)beta2, take2 = (REAL)(1 - beta2);
    const REAL size = (REAL)(eta / (1 - std::pow(beta1, a.step)));
    const REAL grow = (REAL)(1 / std::sqrt(1 - std::pow(beta2, a.step)));
    const REAL least = (REAL)eps;
    const bool is_near = take1 < (REAL)0.5; /* as torch.lerp rounds */
    REAL zero = 0; /* nan as soon as a gradient is infinite or nan */
#pragma omp simd reduction(+ : zero)
    for (long i = begin; i < end; i++) {
        const REAL g = a.g[i], apart = g - a.m[i];
        const REAL m = is_near ? a.m[i] + take1 * apart : g - apart * keep1;
        const REAL v = a.v[i] * keep2 + take2 * g * g;
        zero += g * 0;
        a.new_m[i] = m;
        a.new_v[i] = v;
        a.new_x[i] = a.x[i] - size * m / (std::sqrt(v) * grow + least);
    }
    return zero == 0;
}

/* All threads share each tensor. Returns 1 where a gradient is not finite. */
extern "C" int adam_step(const Arrays *arrays, long count, double eta, double beta1,
                          double beta2, double eps, int threads)
{
    bool is_finite = true;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(&& : is_finite)
    {
#ifdef _OPENMP
        const long thread = omp_get_thread_num(), all = omp_get_num_threads();
#else
        const long thread = 0, all = 1;
#endif
        for (const Arrays *a = arrays; a < arrays + count; a++) {
            const long begin = a->count * thread / all / 16 * 16;
            const long end = thread + 1 == all ? a->count
                                               : a->count * (thread + 1) / all / 16 * 16;
            is_finite = adam(*a, begin, end, eta, beta1, beta2, eps) && is_finite;
        }
    }
    return !is_finite;
}
