#include "thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

// A decode step is a row of short loops: a worker that slept between two of them would wake late.
constexpr int kSpins = 2000;

// The number of this thread in the loop that it works for; -1 outside of any.
thread_local int inside = -1;

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#else
    std::this_thread::yield();
#endif
}

// Tasks do not throw across threads, but a loop of a single thread may be left by an exception.
struct InLoop {
    explicit InLoop(int thread) { inside = thread; }
    ~InLoop() { inside = -1; }
};

}  // namespace

void ThreadPool::resize(int num_threads) {
    std::lock_guard<std::mutex> run_lock(run_mutex_);
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
    stop_ = false;
    // Taken here: a worker that first looks after the next loop has begun must still see it as new.
    auto seen = static_cast<uint32_t>(gate_.load() >> 32);
    for (int thread = 1; thread < num_threads; ++thread)
        workers_.emplace_back([this, thread, seen] { work(thread, seen); });
}

void ThreadPool::run(int num_tasks, Call call, const void* context) {
    if (inside >= 0) {
        for (int task = 0; task < num_tasks; ++task) call(context, task, inside);
        return;
    }
    std::unique_lock<std::mutex> run_lock(run_mutex_);
    if (workers_.empty() || num_tasks <= 1) {
        InLoop in_loop(0);
        for (int task = 0; task < num_tasks; ++task) call(context, task, 0);
        return;
    }
    num_tasks_ = num_tasks;
    call_ = call;
    context_ = context;
    next_task_.store(0, std::memory_order_relaxed);
    left_.store(0, std::memory_order_relaxed);
    {
        std::lock_guard<std::mutex> lock(mutex_);
        gate_.store(((gate_.load(std::memory_order_relaxed) >> 32) + 1) << 32,
                    std::memory_order_release);
    }
    wake_.notify_all();
    take_tasks(0);
    uint64_t joined = gate_.fetch_or(kClosed, std::memory_order_acq_rel) & (kClosed - 1);
    // On a machine with other work the last worker may be off its core: give it ours.
    for (int spin = 0; left_.load(std::memory_order_acquire) != joined; ++spin)
        if (spin < kSpins)
            pause();
        else
            std::this_thread::yield();
}

void ThreadPool::take_tasks(int thread) {
    InLoop in_loop(thread);
    for (;;) {
        int task = next_task_.fetch_add(1, std::memory_order_relaxed);
        if (task >= num_tasks_) return;
        call_(context_, task, thread);
    }
}

// Whether the newest loop is open; seen: its number.
bool ThreadPool::join(uint32_t& seen) {
    uint64_t gate = gate_.load(std::memory_order_acquire);
    do {
        seen = static_cast<uint32_t>(gate >> 32);
        if (gate & kClosed) return false;
    } while (!gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acq_rel));
    return true;
}

void ThreadPool::work(int thread, uint32_t seen) {
    auto is_new = [&] {
        return static_cast<uint32_t>(gate_.load(std::memory_order_acquire) >> 32) != seen;
    };
    for (;;) {
        for (int spin = 0; spin < kSpins && !is_new() && !stop_; ++spin) pause();
        if (!is_new()) {
            std::unique_lock<std::mutex> lock(mutex_);
            wake_.wait(lock, [&] { return stop_ || is_new(); });
        }
        if (stop_) return;
        if (!is_new() || !join(seen)) continue;
        take_tasks(thread);
        left_.fetch_add(1, std::memory_order_release);
    }
}

ThreadPool& thread_pool() {
    static ThreadPool pool;
    return pool;
}
