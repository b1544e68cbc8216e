/* Threads that wait for each other without slowing down a busy machine.

   Each has its share of the blocks, and takes blocks of the others when it is done. So a
   thread that the system has suspended delays only the block it has begun. (A parallel
   loop of OpenMP waits for all threads, spinning: with another program on the same cores
   that made small networks a hundred times slower.)

   No wait is endless: a thread that does not finish its last block within PATIENCE
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
#define PATIENCE 600 /* seconds of waiting while the calling thread itself runs */
#endif

class Pool {
public:
    using Work = std::function<void(long block, int thread)>;

    /* This process's pool. Never destroyed: its threads may outlive what the system
       tears down at the end. A forked process has none of them, and makes its own. */
    static Pool &of_process()
    {
        static std::atomic<Pool *> current{nullptr};
        Pool *pool = current.load();
        if (!pool || pool->process != getpid()) {
            Pool *made = new Pool;
            if (current.compare_exchange_strong(pool, made))
                pool = made;
            else
                delete made; /* another thread was first */
        }
        return *pool;
    }

    /* Run all blocks; this thread, number 0, takes part. False where another thread did
       not come back: it may still be at work in the caller's memory, for ever. */
    bool run(long blocks, int threads, const Work &work)
    {
        threads = threads < MAX_THREADS ? threads : MAX_THREADS;
        std::unique_lock<std::mutex> lock(running, std::try_to_lock);
        if (is_broken)
            return false;
        if (threads < 2 || blocks < 2 || !lock) {
            for (long block = 0; block < blocks; block++)
                work(block, 0);
            return true;
        }
        while (started < threads - 1)
            std::thread(&Pool::run_worker, this, ++started).detach();
        active = threads;
        for (long first = 0; first < blocks && !is_broken; first += MAX_BLOCKS) {
            long rest = blocks - first < MAX_BLOCKS ? blocks - first : MAX_BLOCKS;
            Work part = [&work, first](long block, int t) { work(first + block, t); };
            run_range(rest, threads, blocks > MAX_BLOCKS ? part : work);
        }
        return !is_broken;
    }

private:
    static const int MAX_THREADS = 64;
    static const long MAX_BLOCKS = 0xffff; /* that a ticket can number */

    struct Share {
        alignas(64) std::atomic<uint64_t> ticket{0}; /* run << 32 | end << 16 | next */
    };

    const pid_t process = getpid();
    Share shares[MAX_THREADS];
    std::atomic<long> done{0};
    std::atomic<int> active{0}, sleeping{0};
    std::atomic<bool> is_broken{false};
    const Work *job = nullptr;
    uint64_t run_number = 0;
    int started = 0;
    std::mutex running, sleep_mutex;
    std::condition_variable wake;

    /* Run up to MAX_BLOCKS blocks, and wait for those that other threads have begun. */
    void run_range(long blocks, int threads, const Work &work)
    {
        job = &work;
        done = 0;
        run_number++;
        for (int t = 0; t < threads; t++) {
            uint64_t first = blocks * t / threads, end = blocks * (t + 1) / threads;
            shares[t].ticket.store(run_number << 32 | end << 16 | first);
        }
        if (sleeping.load() > 0) {
            std::lock_guard<std::mutex> lock(sleep_mutex);
            wake.notify_all();
        }
        while (run_block(0)) {
        }
        is_broken = !wait_for(blocks);
    }

    /* Wait until that many blocks are done. Between two looks at the clock at most 0.1 s
       counts: a stopped process, or a suspended machine, is no thread that hangs. */
    bool wait_for(long blocks)
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

    static bool has_block(uint64_t ticket)
    {
        return (ticket & MAX_BLOCKS) < (ticket >> 16 & MAX_BLOCKS);
    }

    /* Run one block, of this thread's share if any is left; false where none is. The job
       is read after one of its tickets was taken: it can't end until that block is
       done. */
    bool run_block(int thread)
    {
        int all = active.load(std::memory_order_acquire);
        for (int i = 0; i < all && thread < all; i++) {
            std::atomic<uint64_t> &ticket = shares[(thread + i) % all].ticket;
            uint64_t now = ticket.load(std::memory_order_acquire);
            while (has_block(now) && thread < active.load(std::memory_order_acquire))
                if (ticket.compare_exchange_weak(now, now + 1)) {
                    (*job)((long)(now & MAX_BLOCKS), thread);
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
            any = any || has_block(shares[t].ticket.load());
        return any && thread < active.load();
    }

    /* What a thread does: it spins for a while after a job, for the next is near. */
    void run_worker(int thread)
    {
        using clock = std::chrono::steady_clock;
        auto idle_since = clock::now();
        for (long waited = 1;; waited++) {
            if (run_block(thread)) {
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
        std::unique_lock<std::mutex> lock(sleep_mutex);
        sleeping++;
        wake.wait(lock, [this, thread] { return is_wanted(thread); });
        sleeping--;
    }
};
