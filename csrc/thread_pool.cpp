#include "thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

// A decode step is a row of short loops: a worker that slept between two of them would wake late.
constexpr int kSpins = 2000;

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#else
    std::this_thread::yield();
#endif
}

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
    unsigned seen = epoch_.load();
    for (int thread = 1; thread < num_threads; ++thread)
        workers_.emplace_back([this, thread, seen] { work(thread, seen); });
}

void ThreadPool::run(int num_tasks, Call call, const void* context) {
    std::unique_lock<std::mutex> run_lock(run_mutex_);
    if (workers_.empty() || num_tasks <= 1) {
        for (int task = 0; task < num_tasks; ++task) call(context, task, 0);
        return;
    }
    num_tasks_ = num_tasks;
    call_ = call;
    context_ = context;
    next_task_.store(0, std::memory_order_relaxed);
    busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    {
        std::lock_guard<std::mutex> lock(mutex_);
        epoch_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    take_tasks(0);
    // On a machine with other work the last worker may be off its core: give it ours.
    for (int spin = 0; busy_.load(std::memory_order_acquire) != 0; ++spin)
        if (spin < kSpins)
            pause();
        else
            std::this_thread::yield();
}

void ThreadPool::take_tasks(int thread) {
    for (;;) {
        int task = next_task_.fetch_add(1, std::memory_order_relaxed);
        if (task >= num_tasks_) return;
        call_(context_, task, thread);
    }
}

void ThreadPool::work(int thread, unsigned seen) {
    for (;;) {
        for (int spin = 0; spin < kSpins; ++spin) {
            if (epoch_.load(std::memory_order_acquire) != seen || stop_) break;
            pause();
        }
        if (epoch_.load(std::memory_order_acquire) == seen) {
            std::unique_lock<std::mutex> lock(mutex_);
            wake_.wait(lock, [&] { return stop_ || epoch_.load() != seen; });
            if (epoch_.load() == seen) return;
        }
        seen = epoch_.load(std::memory_order_acquire);
        take_tasks(thread);
        busy_.fetch_sub(1, std::memory_order_release);
    }
}

ThreadPool& thread_pool() {
    static ThreadPool pool;
    return pool;
}
