/* Sums over the processes of one machine, in memory that they share.

   Each process has a line with the number of its last sum, and two pages that take
   turns: nobody writes a page again before all have read it, for that takes a sum that
   all take part in. The wait spins: to be woken takes longer than most of the work
   between two sums. */

#include <atomic>
#include <chrono>
#include <cstring>
#include <sched.h>

struct Line {
    alignas(64) std::atomic<long> turn;
};

/* 0: `numbers` now hold the sums, in the order of the ranks and so the same in all
   processes. 1: another process has not come within `seconds`; call again to wait on.
   The memory is [processes] lines, then pages [2][processes][capacity]. */
extern "C" int add_up(void *memory, int rank, int processes, long capacity,
                      double *numbers, long count, long turn, double seconds)
{
    Line *lines = (Line *)memory;
    double *pages = (double *)(lines + processes);
    pages += turn % 2 * processes * capacity;
    memcpy(pages + rank * capacity, numbers, count * sizeof(double));
    lines[rank].turn.store(turn, std::memory_order_release);
    auto start = std::chrono::steady_clock::now();
    for (int r = 0; r < processes; r++)
        for (long waited = 1; lines[r].turn.load(std::memory_order_acquire) < turn;
             waited++) {
            if (waited % 1024)
                continue;
            std::chrono::duration<double> since = std::chrono::steady_clock::now() - start;
            if (since.count() > seconds)
                return 1;
            if (since.count() > 2e-5)
                sched_yield(); /* there may be more processes than cores */
        }
    memset(numbers, 0, count * sizeof(double));
    for (int r = 0; r < processes; r++)
        for (long i = 0; i < count; i++)
            numbers[i] += pages[r * capacity + i];
    return 0;
}
