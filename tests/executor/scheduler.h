// Runs the blocks of a launch in turn, the threads of a block as fibers; barriers and shuffles are meeting points.
//
// A meeting that can never complete (a divergent barrier, a lane missing from the mask) ends the launch with an error.
// EXECUTOR_ORDER = rev or a seed changes the order of threads and blocks; none: launches are recorded, not run.
// Shared memory begins as NaN.
#pragma once
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "fibers.h"

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace executor {

constexpr size_t kSharedBytes = 48 << 10;  // what a launch may use without asking for more
constexpr unsigned kAllLanes = 0xffffffffu;

enum class Status : uint8_t { kNew, kReady, kAtBlockBarrier, kAtWarpMeeting, kDone };

struct Meeting {  // of the lanes of one warp, for one mask
  uint32_t mask = 0, arrived = 0;
  uint64_t given[32] = {}, taken[32] = {};
  const char* name = "";
};

struct Thread {
  dim3 index;
  unsigned number;
  Status status = Status::kNew;
  Fiber* fiber = nullptr;
  Meeting* meeting = nullptr;
  void* tsan_fiber = nullptr;
};

struct SharedArray {
  void* tag;
  void* memory;
};

struct Launch {
  dim3 grid, block;
};

struct State {
  dim3 grid, block, block_index;
  std::function<void()> body;
  std::vector<Thread> threads;
  std::vector<unsigned> order;                               // in which the threads of a block start
  std::vector<std::vector<std::unique_ptr<Meeting>>> warps;  // [warps][masks in use]
  std::vector<unsigned> ready;
  size_t next_ready = 0, next_new = 0;
  unsigned live = 0, at_barrier = 0;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Fiber*> idle_fibers;
  Fiber main;
  void* main_tsan_fiber = nullptr;
  char barrier_sync = 0, end_sync = 0;  // addresses that ThreadSanitizer's acquire and release meet at
  std::vector<SharedArray> shared;
  std::vector<void*> retired_shared;
  size_t shared_bytes = 0;
  std::string error;
};
inline State state;
inline Thread* current = nullptr;
inline std::string last_error;        // of a launch, until asked for
inline std::vector<Launch> launches;  // since the tests last cleared it

#if defined(ADVCAM_TRACE)
void trace_shared(void* memory, size_t bytes);
void trace_block_end();
#endif

[[noreturn]] inline void fail(const std::string& error) {
  state.error = error;
  throw std::runtime_error(error);
}

ADVCAM_UNSEEN inline void run_thread() {
  fiber_begins();
  for (;;) {
    Thread* thread = current;
    try {
      state.body();
    } catch (const std::exception& error) {
      if (state.error.empty()) state.error = error.what();
    }
    release(&state.end_sync);
    thread->status = Status::kDone;
    --state.live;
    switch_fiber(*thread->fiber, state.main, state.main_tsan_fiber);  // comes back as another thread
  }
}

inline Fiber* take_fiber() {
  if (state.idle_fibers.empty()) {
    state.fibers.push_back(std::make_unique<Fiber>());
    prepare_fiber(*state.fibers.back(), run_thread);
    return state.fibers.back().get();
  }
  Fiber* fiber = state.idle_fibers.back();
  state.idle_fibers.pop_back();
  return fiber;
}

inline void make_ready(Thread& thread) {
  thread.status = Status::kReady;
  state.ready.push_back(thread.number);
}

inline void open_barrier_if_complete() {
  if (state.at_barrier == 0 || state.at_barrier < state.live) return;
  state.at_barrier = 0;
  for (unsigned i : state.order) {
    if (state.threads[i].status == Status::kAtBlockBarrier) make_ready(state.threads[i]);
  }
}

ADVCAM_UNSEEN inline void wait() {
  switch_fiber(*current->fiber, state.main, state.main_tsan_fiber);
  if (!state.error.empty()) throw std::runtime_error("ended with its block");
}

inline void block_barrier() {
  const Unseen unseen;
  current->status = Status::kAtBlockBarrier;
  ++state.at_barrier;
  release(&state.barrier_sync);
  open_barrier_if_complete();
  wait();
  acquire(&state.barrier_sync);
}

inline Meeting* find_meeting(std::vector<std::unique_ptr<Meeting>>& warp, uint32_t mask) {
  for (auto& meeting : warp) {
    if (meeting->mask == mask) return meeting.get();
  }
  warp.push_back(std::make_unique<Meeting>());
  warp.back()->mask = mask;
  return warp.back().get();
}

// Waits for the lanes of `mask`; afterwards taken[] holds the value that each of them brought.
ADVCAM_UNSEEN inline const Meeting& meet(uint32_t mask, uint64_t value, const char* name) {
  const Unseen unseen;
  Thread* thread = current;
  const unsigned lane = thread->number % 32, first = thread->number - lane;
  if (!(mask >> lane & 1)) fail(std::string(name) + ": the calling lane is not in its own mask");
  Meeting* meeting = find_meeting(state.warps[thread->number / 32], mask);
  meeting->name = name;
  meeting->given[lane] = value;
  meeting->arrived |= 1u << lane;
  thread->meeting = meeting;
  if (meeting->arrived != mask) {
    thread->status = Status::kAtWarpMeeting;
    wait();
    return *meeting;
  }
  std::memcpy(meeting->taken, meeting->given, sizeof meeting->taken);
  meeting->arrived = 0;
  for (unsigned other = 0; other < 32 && first + other < state.threads.size(); ++other) {
    if ((mask >> other & 1) && other != lane) make_ready(state.threads[first + other]);
  }
  return *meeting;
}

// One exact heap block per array and per CUDA block: AddressSanitizer sees its ends.
ADVCAM_UNSEEN inline void* shared_memory(void* tag, size_t bytes) {
  const Unseen unseen;
  for (const SharedArray& array : state.shared) {
    if (array.tag == tag) return array.memory;
  }
  state.shared_bytes += bytes;
  if (state.shared_bytes > kSharedBytes) fail("over 48 KB of shared memory");
  void* memory = nullptr;
  if (posix_memalign(&memory, 16, bytes)) std::abort();
  std::memset(memory, 0xff, bytes);
#if defined(ADVCAM_TRACE)
  trace_shared(memory, bytes);
#endif
  state.shared.push_back({tag, memory});
  return memory;
}

inline void drop_shared() {
  for (const SharedArray& array : state.shared) {
#if defined(ADVCAM_TSAN)
    state.retired_shared.push_back(array.memory);  // an address used again would order two blocks, or make them race
#else
    std::free(array.memory);
#endif
  }
  state.shared.clear();
  state.shared_bytes = 0;
}

inline std::string describe_deadlock() {
  unsigned at_barrier = 0, at_meeting = 0;
  const char* name = "a shuffle";
  for (const Thread& thread : state.threads) {
    at_barrier += thread.status == Status::kAtBlockBarrier;
    if (thread.status == Status::kAtWarpMeeting) {
      ++at_meeting;
      name = thread.meeting->name;
    }
  }
  char text[160];
  std::snprintf(text, sizeof text, "deadlock in block %u: of %u live threads %u wait at __syncthreads, %u at %s",
                state.block_index.x, state.live, at_barrier, at_meeting, name);
  return text;
}

inline void start_block() {
  state.live = static_cast<unsigned>(state.threads.size());
  state.at_barrier = 0;
  state.next_new = state.next_ready = 0;
  state.ready.clear();
  for (auto& warp : state.warps) warp.clear();
  for (Thread& thread : state.threads) {
    thread.status = Status::kNew;
#if defined(ADVCAM_TSAN)
    thread.tsan_fiber = __tsan_create_fiber(0);
#endif
  }
}

inline Thread* next_thread() {
  if (state.next_ready < state.ready.size()) return &state.threads[state.ready[state.next_ready++]];
  if (state.next_new == state.threads.size()) return nullptr;
  Thread* thread = &state.threads[state.order[state.next_new++]];
  thread->fiber = take_fiber();
  return thread;
}

inline void run_block() {
  start_block();
  while (state.live && state.error.empty()) {
    Thread* thread = next_thread();
    if (!thread) {
      state.error = describe_deadlock();
      break;
    }
    thread->status = Status::kReady;
    current = thread;
    switch_fiber(state.main, *thread->fiber, thread->tsan_fiber);
    current = nullptr;
    if (thread->status != Status::kDone) continue;
#if !defined(ADVCAM_TSAN)  // two threads on one stack would seem to race for it
    state.idle_fibers.push_back(thread->fiber);
#endif
    open_barrier_if_complete();
  }
#if defined(ADVCAM_TSAN)
  for (Thread& thread : state.threads) __tsan_destroy_fiber(thread.tsan_fiber);
#endif
#if defined(ADVCAM_TRACE)
  trace_block_end();
#endif
  drop_shared();
}

// The orders of threads (state.order) and of blocks (returned).
inline std::vector<uint64_t> choose_order(size_t threads, uint64_t blocks) {
  state.order.resize(threads);
  std::iota(state.order.begin(), state.order.end(), 0u);
  const char* wanted = std::getenv("EXECUTOR_ORDER");
  if (wanted && !std::strcmp(wanted, "none")) return {};
  std::vector<uint64_t> block_order(blocks);
  std::iota(block_order.begin(), block_order.end(), uint64_t(0));
  if (wanted && !std::strcmp(wanted, "rev")) {
    std::reverse(state.order.begin(), state.order.end());
    std::reverse(block_order.begin(), block_order.end());
  } else if (wanted) {
    std::mt19937 random(static_cast<unsigned>(std::atoi(wanted)));
    std::shuffle(state.order.begin(), state.order.end(), random);
    std::shuffle(block_order.begin(), block_order.end(), random);
  }
  return block_order;
}

inline void run_grid(dim3 grid, dim3 block) {
  state.error.clear();
  if (uint64_t(block.x) * block.y * block.z > 1024 || grid.y > 65535 || grid.z > 65535 || grid.x > 0x7fffffffu ||
      !grid.x || !grid.y || !grid.z || !block.x) {
    state.error = "invalid configuration argument";
    return;
  }
  launches.push_back({grid, block});
  state.grid = grid;
  state.block = block;
  state.threads.assign(block.x * block.y * block.z, {});
  state.warps.resize((state.threads.size() + 31) / 32);
  for (unsigned i = 0; i < state.threads.size(); ++i) {
    state.threads[i].index = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
    state.threads[i].number = i;
  }
#if defined(ADVCAM_TSAN)
  state.main_tsan_fiber = __tsan_get_current_fiber();
#endif
  for (uint64_t i : choose_order(state.threads.size(), uint64_t(grid.x) * grid.y * grid.z)) {
    state.block_index = {unsigned(i % grid.x), unsigned(i / grid.x % grid.y),
                         unsigned(i / (uint64_t(grid.x) * grid.y))};
    run_block();
    if (!state.error.empty()) break;
  }
  acquire(&state.end_sync);
  for (void* memory : state.retired_shared) std::free(memory);
  state.retired_shared.clear();
  for (auto& fiber : state.fibers) std::free(fiber->stack);
  state.fibers.clear();
  state.idle_fibers.clear();
}

template <class Kernel, class... Arguments>
void launch(Kernel kernel, dim3 grid, dim3 block, Arguments... arguments) {
  const Unseen unseen;
  state.body = [=] { kernel(arguments...); };
  run_grid(grid, block);
  if (last_error.empty()) last_error = state.error;
}

}  // namespace executor
