// relu(own + by * x) - relu(own) in one loop: lesson 09 times it beside four calls.

#include <algorithm>

extern "C" void moved(const double *own, const double *x, double by, double *out,
                      long n) {
    for (long i = 0; i < n; i++) {
        double old = own[i], now = old + by * x[i];  // in registers
        out[i] = std::max(now, 0.0) - std::max(old, 0.0);  // stored once
    }
}
