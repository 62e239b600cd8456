// Memory and threads of the CPU kernels that need more of them than a loop.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <memory>
#include <new>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace advcam::cpu {
// Not cleared, unlike a vector. Large ones ask for huge pages: the first touch of a small page costs as much as a
// filter.
template <class T>
class Array {
 public:
  Array() = default;
  explicit Array(int64_t n) {
    constexpr size_t kHuge = size_t{1} << 21;
    const size_t bytes = static_cast<size_t>(n) * sizeof(T);
    const size_t page = bytes >= kHuge ? kHuge : 64, rounded = (bytes + page) / page * page;
    data_.reset(static_cast<T*>(std::aligned_alloc(page, rounded)));
    if (!data_) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    if (page == kHuge) madvise(data_.get(), rounded, MADV_HUGEPAGE);
#endif
  }
  T* get() const { return data_.get(); }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  struct Free {
    void operator()(T* data) const { std::free(data); }
  };
  std::unique_ptr<T[], Free> data_;
};

// Runs job(i) for all i < jobs. What is done never depends on the number of threads, only who does it.
template <class Job>
void in_parallel(int threads, int64_t jobs, const Job& job) {
  std::exception_ptr error;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1 && jobs > 1)
  for (int64_t i = 0; i < jobs; ++i) {
    try {
      job(i);
    } catch (...) {
#pragma omp critical(advcam_in_parallel)
      error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}
}  // namespace advcam::cpu
