// A permutohedral lattice on a CPU: which vertices each point lies between, and the chains along which they are
// blurred.
#pragma once
#include <algorithm>
#include <cstdint>
#include <exception>
#include <memory>
#include <vector>

#include "cpu/simd.h"
#include "permutohedral.h"

namespace advcam::cpu {
// Not cleared, unlike a vector's.
template <class T>
class Array {
 public:
  Array() = default;
  explicit Array(int64_t n) : data_(new T[n]) {}
  T* get() const { return data_.get(); }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  std::unique_ptr<T[]> data_;
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

// Keys to numbers in the order of their first appearance: open addressing, at most half full.
class Numbering {
 public:
  Numbering() : slots_(size_t{1} << 14, Slot{kNone, 0}), shift_(64 - 14) {}

  int32_t add(int64_t key) {
    Slot& slot = find(key);
    if (slot.key == key) return slot.number;
    slot = {key, static_cast<int32_t>(keys_.size())};
    keys_.push_back(key);
    if (2 * keys_.size() > slots_.size()) grow();
    return static_cast<int32_t>(keys_.size()) - 1;
  }
  int32_t number_of(int64_t key) const {  // -1: absent
    const Slot& slot = const_cast<Numbering*>(this)->find(key);
    return slot.key == key ? slot.number : -1;
  }
  const std::vector<int64_t>& keys() const { return keys_; }

 private:
  static constexpr int64_t kNone = -1;
  struct Slot {
    int64_t key;
    int32_t number;
  };
  std::vector<Slot> slots_;
  int shift_;
  std::vector<int64_t> keys_;

  Slot& find(int64_t key) {
    const size_t mask = slots_.size() - 1;
    size_t at = (static_cast<uint64_t>(key) * 0x9e3779b97f4a7c15u) >> shift_;
    while (slots_[at].key != kNone && slots_[at].key != key) at = (at + 1) & mask;
    return slots_[at];
  }
  void grow() {
    slots_.assign(slots_.size() * 4, Slot{kNone, 0});
    shift_ -= 2;
    for (size_t i = 0; i < keys_.size(); ++i) find(keys_[i]) = {keys_[i], static_cast<int32_t>(i)};
  }
};

constexpr int kTile = 64;  // points that are worked on together

#define SIMPLICES(d)                                                                            \
  ADVCAM_CLONES static void simplices(const LatticeShape<d>& shape, const float (&f)[d][kTile], \
                                      float (&w)[d + 1][kTile], int64_t (&k)[d + 1][kTile]) {   \
    find_simplices<d, kTile>(shape, f, w, k);                                                   \
  }
SIMPLICES(2)
SIMPLICES(5)
#undef SIMPLICES

// kStart marks the first vertex of a chain.
constexpr uint32_t kStart = 0x80000000u;

template <int d>
struct Lattice {
  int64_t points = 0, stride = 0, vertices = 0;
  Array<int32_t> vertex;   // [d + 1, stride]  of each point, by colour
  Array<float> weight;     // [d + 1, stride]
  Array<uint32_t> chains;  // [d + 1, vertices + 1]  all vertices, neighbours along the axis one after another

  // fill(first, count, features [d, kTile]) gives the features of the points from `first`.
  template <class Fill>
  void build(int64_t n, const LatticeShape<d>& shape, const Fill& fill, int threads) {
    // Kraehenbuehl's code takes four points at a time. Those missing lie at 0; their vertices take part in the blur.
    points = n, stride = n + (n % 4 != 0);
    vertex = Array<int32_t>((d + 1) * stride), weight = Array<float>((d + 1) * stride);
    const Array<int64_t> key((d + 1) * stride);
    in_parallel(threads, (stride + kTile * 64 - 1) / (kTile * 64), [&](int64_t job) {
      for (int64_t i = job * kTile * 64; i < std::min(stride, (job + 1) * kTile * 64); i += kTile) {
        float f[d][kTile] = {}, w[d + 1][kTile];
        int64_t k[d + 1][kTile];
        if (i < n) fill(i, std::min<int64_t>(kTile, n - i), f);
        simplices(shape, f, w, k);
        const int64_t count = std::min<int64_t>(kTile, stride - i);
        for (int c = 0; c <= d; ++c) {
          std::copy_n(w[c], count, &weight[c * stride + i]);
          std::copy_n(k[c], count, &key[c * stride + i]);
        }
      }
    });
    Numbering numbers[d + 1];  // a colour's vertices are no other's: one job each
    in_parallel(threads, d + 1, [&](int64_t c) {
      const int64_t* k = &key[c * stride];
      int32_t* v = &vertex[c * stride];
      for (int64_t i = 0; i < stride; ++i) v[i] = i && k[i] == k[i - 1] ? v[i - 1] : numbers[c].add(k[i]);
    });
    number_all(shape, numbers, threads);
  }

 private:
  void number_all(const LatticeShape<d>& shape, const Numbering (&numbers)[d + 1], int threads) {
    int64_t first[d + 2] = {};  // of each colour's vertices
    for (int c = 0; c <= d; ++c) first[c + 1] = first[c] + static_cast<int64_t>(numbers[c].keys().size());
    vertices = first[d + 1];
    chains = Array<uint32_t>((d + 1) * (vertices + 1));
    in_parallel(threads, d + 1, [&](int64_t c) {
      for (int64_t i = 0; i < stride; ++i) vertex[c * stride + i] += static_cast<int32_t>(first[c]);
    });
    in_parallel(threads, d + 1, [&](int64_t axis) {
      const Array<int32_t> up(vertices);
      std::vector<uint8_t> has_lower(vertices, 0);
      for (int c = 0; c <= d; ++c) {
        const int above = c == d ? 0 : c + 1;
        const int64_t step = shape.up(static_cast<int>(axis), c);
        for (int64_t i = first[c]; i < first[c + 1]; ++i) {
          const int32_t found = numbers[above].number_of(numbers[c].keys()[i - first[c]] + step);
          up[i] = found < 0 ? -1 : static_cast<int32_t>(first[above]) + found;
          if (found >= 0) has_lower[up[i]] = 1;
        }
      }
      uint32_t* chain = &chains[axis * (vertices + 1)];
      for (int64_t i = 0; i < vertices; ++i) {
        if (has_lower[i]) continue;
        *chain++ = static_cast<uint32_t>(i) | kStart;
        for (int32_t next = up[i]; next >= 0; next = up[next]) *chain++ = static_cast<uint32_t>(next);
      }
      *chain = kStart;
    });
  }
};
}  // namespace advcam::cpu
