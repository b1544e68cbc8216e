/* Threads that wait for each other without holding up a busy machine.

   Each has its share of the blocks, and takes from the others' when it is done. So a
   thread that the system has put aside holds up nothing but the block it has begun. (A
   parallel loop of OpenMP waits for all threads, awake: with another program on the
   same cores that made small networks a hundred times slower.) */

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <sched.h>
#include <thread>

class Pool {
public:
    using Work = std::function<void(long block, int thread)>;

    /* Run all blocks; this thread, number 0, takes part. */
    void run(long blocks, int threads, const Work &work)
    {
        threads = threads < MOST ? threads : MOST;
        std::unique_lock<std::mutex> only(running, std::try_to_lock);
        if (threads < 2 || blocks < 2 || !only) {
            for (long block = 0; block < blocks; block++)
                work(block, 0);
            return;
        }
        while (started < threads - 1)
            std::thread(&Pool::live, this, ++started).detach();
        job = &work;
        active = threads;
        done = 0;
        turn++;
        for (int t = 0; t < threads; t++) {
            uint64_t first = blocks * t / threads, end = blocks * (t + 1) / threads;
            shares[t].ticket.store(turn << 40 | end << 20 | first);
        }
        if (sleeping.load() > 0) {
            std::lock_guard<std::mutex> lock(bed);
            bell.notify_all();
        }
        while (take(0)) {
        }
        for (long waited = 0; done.load(std::memory_order_acquire) < blocks; waited++)
            if (waited > 1000)
                sched_yield();
    }

private:
    static const int MOST = 64;

    struct Share {
        alignas(64) std::atomic<uint64_t> ticket{0}; /* turn << 40 | end << 20 | next */
    };

    Share shares[MOST];
    std::atomic<long> done{0};
    std::atomic<int> active{0}, sleeping{0};
    const Work *job = nullptr;
    uint64_t turn = 0;
    int started = 0;
    std::mutex running, bed;
    std::condition_variable bell;

    static bool is_open(uint64_t ticket)
    {
        return (ticket & 0xfffff) < (ticket >> 20 & 0xfffff);
    }

    /* Run one block, of this thread's share if any is left; false where none is. The
       job is read after a ticket of it was taken: until that block is done, the job
       can't end. */
    bool take(int thread)
    {
        int all = active.load(std::memory_order_acquire);
        for (int i = 0; i < all && thread < all; i++) {
            std::atomic<uint64_t> &ticket = shares[(thread + i) % all].ticket;
            uint64_t now = ticket.load(std::memory_order_acquire);
            while (is_open(now) && thread < active.load(std::memory_order_acquire))
                if (ticket.compare_exchange_weak(now, now + 1)) {
                    (*job)((long)(now & 0xfffff), thread);
                    done.fetch_add(1, std::memory_order_release);
                    return true;
                }
        }
        return false;
    }

    bool is_wanted(int thread)
    {
        bool any = false;
        for (int t = 0; t < active.load(); t++)
            any = any || is_open(shares[t].ticket.load());
        return any && thread < active.load();
    }

    /* What a thread does: awake for a while after a job, for the next is near. */
    void live(int thread)
    {
        using clock = std::chrono::steady_clock;
        auto idle_since = clock::now();
        for (long waited = 1;; waited++) {
            if (take(thread)) {
                waited = 0;
            } else if (waited % 256 == 0) {
                auto now = clock::now();
                if (waited == 256)
                    idle_since = now;
                if (now - idle_since > std::chrono::milliseconds(2))
                    sleep(thread);
                else if (now - idle_since > std::chrono::microseconds(100))
                    sched_yield();
            }
        }
    }

    void sleep(int thread)
    {
        std::unique_lock<std::mutex> lock(bed);
        sleeping++;
        bell.wait(lock, [this, thread] { return is_wanted(thread); });
        sleeping--;
    }
};
