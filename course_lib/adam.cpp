/* Adam's step into new arrays: one pass over memory where copies take a second one.

   x' = x - eta m^ / (sqrt(v^) + eps), m' = beta1 m + (1 - beta1) g,
   v' = beta2 v + (1 - beta2) g g, in torch's order of operations. */

#include <cmath>
#ifdef _OPENMP
#include <omp.h>
#endif

struct Arrays { /* of one tensor */
    const REAL *x, *g, *m, *v;
    REAL *new_x, *new_m, *new_v;
    long count, step;
};

static void adam(const Arrays &a, long begin, long end, double eta, double beta1,
                 double beta2, double eps)
{
    const REAL keep1 = (REAL)beta1, take1 = (REAL)(1 - beta1);
    const REAL keep2 = (REAL)beta2, take2 = (REAL)(1 - beta2);
    const REAL size = (REAL)(eta / (1 - std::pow(beta1, a.step)));
    const REAL lack = (REAL)std::sqrt(1 - std::pow(beta2, a.step)), least = (REAL)eps;
    const bool is_near = take1 < (REAL)0.5; /* as torch.lerp rounds */
#pragma omp simd
    for (long i = begin; i < end; i++) {
        const REAL g = a.g[i], apart = g - a.m[i];
        const REAL m = is_near ? a.m[i] + take1 * apart : g - apart * keep1;
        const REAL v = a.v[i] * keep2 + take2 * g * g;
        a.new_m[i] = m;
        a.new_v[i] = v;
        a.new_x[i] = a.x[i] - size * m / (std::sqrt(v) / lack + least);
    }
}

/* All threads share each tensor. */
extern "C" void adam_step(const Arrays *arrays, long count, double eta, double beta1,
                          double beta2, double eps, int threads)
{
#pragma omp parallel num_threads(threads) if (threads > 1)
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
            adam(*a, begin, end, eta, beta1, beta2, eps);
        }
    }
}
