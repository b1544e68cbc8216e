/* Threads that wait for each other without holding up a busy machine.

   Each has its share of the blocks, and takes from the others' when it is done. So a
   thread that the system has put aside holds up nothing but the block it has begun. (A
   parallel loop of OpenMP waits for all threads, awake: with another program on the
   same cores that made small networks a hundred times slower.)

   No wait is endless: a thread that does not give its last block back within PATIENCE
   seconds ends the run, and the pool refuses all later ones. */

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <sched.h>
#include <thread>
#include <unistd.h>

#ifndef PATIENCE
#define PATIENCE 600 /* seconds that the calling thread waits, itself running */
#endif

class Pool {
public:
    using Work = std::function<void(long block, int thread)>;

    /* This process's pool. Never taken down: its threads may outlive what the system
       tears down at the end. A process that was forked has none of them, and takes a
       pool of its own. */
    static Pool &ours()
    {
        static std::atomic<Pool *> current{nullptr};
        Pool *own = current.load();
        if (!own || own->process != getpid()) {
            Pool *fresh = new Pool;
            if (current.compare_exchange_strong(own, fresh))
                own = fresh;
            else
                delete fresh; /* another thread was first */
        }
        return *own;
    }

    /* Run all blocks; this thread, number 0, takes part. False where another thread did
       not come back: it may still be at work in the caller's memory, for ever. */
    bool run(long blocks, int threads, const Work &work)
    {
        threads = threads < MOST ? threads : MOST;
        std::unique_lock<std::mutex> only(running, std::try_to_lock);
        if (is_broken)
            return false;
        if (threads < 2 || blocks < 2 || !only) {
            for (long block = 0; block < blocks; block++)
                work(block, 0);
            return true;
        }
        while (started < threads - 1)
            std::thread(&Pool::live, this, ++started).detach();
        active = threads;
        for (long first = 0; first < blocks && !is_broken; first += RANGE) {
            long rest = blocks - first < RANGE ? blocks - first : RANGE;
            Work part = [&work, first](long block, int t) { work(first + block, t); };
            share_out(rest, threads, blocks > RANGE ? part : work);
        }
        return !is_broken;
    }

private:
    static const int MOST = 64;
    static const long RANGE = 0xffff; /* blocks that a ticket can number */

    struct Share {
        alignas(64) std::atomic<uint64_t> ticket{0}; /* turn << 32 | end << 16 | next */
    };

    const pid_t process = getpid();
    Share shares[MOST];
    std::atomic<long> done{0};
    std::atomic<int> active{0}, sleeping{0};
    std::atomic<bool> is_broken{false};
    const Work *job = nullptr;
    uint64_t turn = 0;
    int started = 0;
    std::mutex running, bed;
    std::condition_variable bell;

    /* Run up to RANGE blocks, and wait for those that other threads have begun. */
    void share_out(long blocks, int threads, const Work &work)
    {
        job = &work;
        done = 0;
        turn++;
        for (int t = 0; t < threads; t++) {
            uint64_t first = blocks * t / threads, end = blocks * (t + 1) / threads;
            shares[t].ticket.store(turn << 32 | end << 16 | first);
        }
        if (sleeping.load() > 0) {
            std::lock_guard<std::mutex> lock(bed);
            bell.notify_all();
        }
        while (take(0)) {
        }
        is_broken = !all_done(blocks);
    }

    /* Wait for the other threads. Of the time between two looks at the clock only so
       much counts as this thread may have been awake: a stopped process, or a machine
       that was put to sleep, is no thread that hangs. */
    bool all_done(long blocks)
    {
        using clock = std::chrono::steady_clock;
        std::chrono::duration<double> awake(0), most(0.1);
        auto before = clock::now();
        for (long waited = 1; done.load(std::memory_order_acquire) < blocks; waited++) {
            if (waited > 1000)
                sched_yield();
            if (waited % 1024)
                continue;
            auto now = clock::now();
            std::chrono::duration<double> since = now - before;
            awake += since < most ? since : most;
            before = now;
            if (awake.count() > PATIENCE)
                return false;
        }
        return true;
    }

    static bool is_open(uint64_t ticket)
    {
        return (ticket & RANGE) < (ticket >> 16 & RANGE);
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
                    (*job)((long)(now & RANGE), thread);
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
