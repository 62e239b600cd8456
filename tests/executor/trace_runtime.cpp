// Stands in for ThreadSanitizer's run time: every load and store of the instrumented kernels arrives here with its
// address and size. The accesses that the lanes of a warp make together count as one request, and a request costs the
// 32-byte sectors it touches. Compiled without -fsanitize itself.
#include "trace_runtime.h"

#include <cstdio>
#include <map>
#include <set>
#include <tuple>

#include "executor.h"

namespace {

struct Tensor {
  const char* name;
  uintptr_t begin, end;
  uint64_t bytes[2] = {}, sectors[2] = {};  // read, written
};

struct Access {
  uintptr_t address;
  size_t bytes;
};

using Request = std::tuple<unsigned, uintptr_t, unsigned, bool>;  // warp, instruction, its n-th time, is it a store
std::vector<Tensor> tensors;
std::map<Request, std::vector<Access>> requests;
std::map<std::pair<unsigned, uintptr_t>, unsigned> times;  // that a thread came to an instruction

Tensor* find_tensor(uintptr_t address) {
  for (Tensor& tensor : tensors) {
    if (address >= tensor.begin && address < tensor.end) return &tensor;
  }
  return nullptr;
}

void note(const void* pointer, size_t bytes, bool store, uintptr_t instruction) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (!executor::current || !find_tensor(address)) return;
  const unsigned thread = executor::current->number, time = times[{thread, instruction}]++;
  requests[{thread / 32, instruction, time, store}].push_back({address, bytes});
}

}  // namespace

namespace executor {

void trace_shared(void*, size_t) {}

void trace_block_end() {
  for (const auto& [request, accesses] : requests) {
    Tensor& tensor = *find_tensor(accesses.front().address);
    const bool store = std::get<3>(request);
    std::set<uintptr_t> sectors;
    for (const Access& access : accesses) {
      tensor.bytes[store] += access.bytes;
      for (uintptr_t s = access.address / 32; s <= (access.address + access.bytes - 1) / 32; ++s) sectors.insert(s);
    }
    tensor.sectors[store] += sectors.size();
  }
  requests.clear();
  times.clear();
}

}  // namespace executor

void trace_tensor(const char* name, const void* memory, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  tensors.push_back({name, begin, begin + bytes});
}

void print_trace() {
  for (const Tensor& tensor : tensors) {
    std::printf("%s %lu %lu %lu %lu\n", tensor.name, tensor.bytes[0], tensor.sectors[0], tensor.bytes[1],
                tensor.sectors[1]);
  }
  tensors.clear();
}

#define CALLER reinterpret_cast<uintptr_t>(__builtin_return_address(0))
#define ACCESS_OF(size)                                                                   \
  void __tsan_read##size(void* pointer) { note(pointer, size, false, CALLER); }           \
  void __tsan_write##size(void* pointer) { note(pointer, size, true, CALLER); }           \
  void __tsan_unaligned_read##size(void* pointer) { note(pointer, size, false, CALLER); } \
  void __tsan_unaligned_write##size(void* pointer) { note(pointer, size, true, CALLER); }
extern "C" {
ACCESS_OF(1)
ACCESS_OF(2)
ACCESS_OF(4)
ACCESS_OF(8)
ACCESS_OF(16)
void __tsan_read_range(void* pointer, size_t bytes) { note(pointer, bytes, false, CALLER); }
void __tsan_write_range(void* pointer, size_t bytes) { note(pointer, bytes, true, CALLER); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
int __tsan_atomic32_load(const volatile int* value, int) { return *value; }
unsigned char __tsan_atomic8_load(const volatile unsigned char* value, int) { return *value; }
}
