// One pool of threads for the process: numbered tasks, taken in order by whoever is free.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

class ThreadPool {
  public:
    ~ThreadPool() { resize(1); }

    int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

    // Not while a loop runs.
    void resize(int num_threads);

    // Calls body(task, thread) for each task in [0, num_tasks); thread is in [0, num_threads). A
    // loop within a task is the task's own thread's.
    template <class Body>
    void parallel_for(int num_tasks, const Body& body) {
        run(
            num_tasks,
            [](const void* context, int task, int thread) {
                (*static_cast<const Body*>(context))(task, thread);
            },
            &body);
    }

  private:
    static constexpr uint64_t kClosed = 1u << 31;

    using Call = void (*)(const void* context, int task, int thread);

    void run(int num_tasks, Call call, const void* context);
    void work(int thread, uint32_t seen);
    bool join(uint32_t& seen);
    void take_tasks(int thread);

    std::vector<std::thread> workers_;
    std::mutex run_mutex_;  // one loop at a time, whichever Python thread starts it
    std::mutex mutex_;
    std::condition_variable wake_;
    // The number of the newest loop in the high half; then whether it is closed, and how many
    // workers have joined it. Who wakes too late finds it closed, and nobody has waited for him.
    std::atomic<uint64_t> gate_{kClosed};
    std::atomic<int> next_task_{0};
    std::atomic<uint32_t> left_{0};  // workers that have joined it and are done
    std::atomic<bool> stop_{false};
    int num_tasks_ = 0;
    Call call_ = nullptr;
    const void* context_ = nullptr;
};

ThreadPool& thread_pool();
