// Fibers, and what the sanitizers must be told about them.
//
// Every CUDA thread is a fiber on one OS thread. For ThreadSanitizer each is a thread of its own, switched to without
// synchronisation: only barriers order memory, so a missing one is a reported data race, every time.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#if defined(__SANITIZE_THREAD__) && !defined(ADVCAM_TRACE)
#define ADVCAM_TSAN 1
#endif

#if defined(ADVCAM_TSAN)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#define ADVCAM_UNSEEN __attribute__((no_sanitize("thread"), noinline))
#else
#define ADVCAM_UNSEEN __attribute__((noinline))
#endif
#if defined(__SANITIZE_ADDRESS__)
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** former_bottom, size_t* former_size);
}
#endif

namespace executor {

constexpr size_t kStackBytes = 128 << 10;

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;  // null: the OS thread's own
};

inline void acquire([[maybe_unused]] void* address) {
#if defined(ADVCAM_TSAN)
  __tsan_acquire(address);
#endif
}

inline void release([[maybe_unused]] void* address) {
#if defined(ADVCAM_TSAN)
  __tsan_release(address);
#endif
}

// Keeps the executor's own bookkeeping out of ThreadSanitizer's sight.
struct Unseen {
#if defined(ADVCAM_TSAN)
  Unseen() {
    AnnotateIgnoreReadsBegin("", 0);
    AnnotateIgnoreWritesBegin("", 0);
  }
  ~Unseen() {
    AnnotateIgnoreWritesEnd("", 0);
    AnnotateIgnoreReadsEnd("", 0);
  }
#else
  Unseen() {}
#endif
};

#if !defined(__x86_64__)
#error "the fiber switch is written for x86-64 only"
#endif
// Saves the registers that a callee must keep, changes stacks, restores them.
extern "C" void advcam_switch_stack(void** from, void* to);
asm(R"(
.pushsection .text
.weak advcam_switch_stack
.type advcam_switch_stack,@function
advcam_switch_stack:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi); movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret
.size advcam_switch_stack,.-advcam_switch_stack
.popsection
)");

// AddressSanitizer wants the bounds of the stack gone to; those of the OS thread's are learnt from the first fiber.
inline const void* main_stack_bottom = nullptr;
inline size_t main_stack_bytes = 0;

ADVCAM_UNSEEN inline void switch_fiber(Fiber& from, Fiber& to, [[maybe_unused]] void* tsan_fiber) {
#if defined(ADVCAM_TSAN)
  __tsan_switch_to_fiber(tsan_fiber, 1);  // 1: no synchronisation
#elif defined(__SANITIZE_ADDRESS__)
  void* fake_stack;
  __sanitizer_start_switch_fiber(&fake_stack, to.stack ? to.stack : main_stack_bottom,
                                 to.stack ? kStackBytes : main_stack_bytes);
#endif
  advcam_switch_stack(&from.stack_pointer, to.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom;
  size_t bytes;
  __sanitizer_finish_switch_fiber(fake_stack, &bottom, &bytes);
#endif
}

// The first thing a new fiber does.
inline void fiber_begins() {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (!main_stack_bottom) {
    main_stack_bottom = bottom;
    main_stack_bytes = bytes;
  }
#endif
}

// `entry` never returns.
inline void prepare_fiber(Fiber& fiber, void (*entry)()) {
  fiber.stack = static_cast<char*>(std::aligned_alloc(64, kStackBytes));
  void** top = reinterpret_cast<void**>(fiber.stack + kStackBytes);
  *--top = nullptr;  // keeps the stack aligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;  // the registers
  fiber.stack_pointer = top;
}

}  // namespace executor
