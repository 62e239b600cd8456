// A permutohedral lattice on a CPU: which vertices each point lies between, and the chains along which they are
// blurred.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/array.h"
#include "cpu/simd.h"
#include "permutohedral.h"

namespace advcam::cpu {
constexpr int kTile = 64;  // points, or keys, that are worked on together

// Keys to numbers in the order of their first appearance: open addressing, at most a quarter full. Keys come in tiles,
// whose slots are fetched into the cache before they are looked at.
template <class Key>
class Numbering {
 public:
  Numbering() : slots_(size_t{1} << 13, Slot{kNone, 0}), shift_(64 - 13) {}

  void add(const Key* keys, int64_t count, int32_t* numbers) {
    fetch(keys, count, 0);
    for (int64_t i = 0; i < count; ++i) numbers[i] = i && keys[i] == keys[i - 1] ? numbers[i - 1] : add(keys[i]);
  }
  // The numbers of keys + step; how many keys there are for those that are absent.
  void find(const Key* keys, int64_t count, Key step, int32_t* numbers) const {
    fetch(keys, count, step);
    for (int64_t i = 0; i < count; ++i) {
      const Slot& slot = slots_[place(keys[i] + step)];
      numbers[i] = slot.key == kNone ? static_cast<int32_t>(keys_.size()) : slot.number;
    }
  }
  const std::vector<Key>& keys() const { return keys_; }

 private:
  static constexpr Key kNone = -1;
  struct Slot {
    Key key;
    int32_t number;
  };
  std::vector<Slot> slots_;
  int shift_;
  std::vector<Key> keys_;

  size_t wanted(Key key) const { return (static_cast<uint64_t>(key) * 0x9e3779b97f4a7c15u) >> shift_; }
  void fetch(const Key* keys, int64_t count, Key step) const {
    for (int64_t i = 0; i < count; ++i) __builtin_prefetch(&slots_[wanted(keys[i] + step)]);
  }
  size_t place(Key key) const {
    size_t at = wanted(key);
    while (slots_[at].key != key && slots_[at].key != kNone) at = (at + 1) & (slots_.size() - 1);
    return at;
  }
  int32_t add(Key key) {
    Slot& slot = slots_[place(key)];
    if (slot.key == key) return slot.number;
    slot = {key, static_cast<int32_t>(keys_.size())};
    keys_.push_back(key);
    if (4 * keys_.size() > slots_.size()) grow();
    return static_cast<int32_t>(keys_.size()) - 1;
  }
  void grow() {
    slots_.assign(slots_.size() * 2, Slot{kNone, 0});
    --shift_;
    for (size_t i = 0; i < keys_.size(); ++i) slots_[place(keys_[i])] = {keys_[i], static_cast<int32_t>(i)};
  }
};

#define SIMPLICES(d, Key)                                                                       \
  ADVCAM_CLONES static void simplices(const LatticeShape<d>& shape, const float (&f)[d][kTile], \
                                      float (&w)[d + 1][kTile], Key(&k)[d + 1][kTile]) {        \
    find_simplices<d, kTile, Key>(shape, f, w, k);                                              \
  }
SIMPLICES(2, int32_t)
SIMPLICES(2, int64_t)
SIMPLICES(5, int32_t)
SIMPLICES(5, int64_t)
#undef SIMPLICES

// kStart marks the first vertex of a chain.
constexpr uint32_t kStart = 0x80000000u;
constexpr int kSlack = 16;  // behind the arrays that are looked into ahead of time

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
    vertex = Array<int32_t>((d + 1) * stride + kSlack), weight = Array<float>((d + 1) * stride);
    shape.bits < 32 ? build_keys<int32_t>(shape, fill, threads) : build_keys<int64_t>(shape, fill, threads);
  }

 private:
  template <class Key, class Fill>
  void build_keys(const LatticeShape<d>& shape, const Fill& fill, int threads) {
    const Array<Key> key((d + 1) * stride);
    constexpr int64_t kJob = kTile * 32;
    in_parallel(threads, (stride + kJob - 1) / kJob, [&](int64_t job) {
      for (int64_t i = job * kJob; i < std::min(stride, (job + 1) * kJob); i += kTile) {
        float f[d][kTile] = {}, w[d + 1][kTile];
        Key k[d + 1][kTile];
        if (i < points) fill(i, std::min<int64_t>(kTile, points - i), f);
        simplices(shape, f, w, k);
        const int64_t count = std::min<int64_t>(kTile, stride - i);
        for (int c = 0; c <= d; ++c) {
          std::copy_n(w[c], count, &weight[c * stride + i]);
          std::copy_n(k[c], count, &key[c * stride + i]);
        }
      }
    });
    Numbering<Key> numbers[d + 1];      // a colour's vertices are no other's: one job each
    std::vector<int32_t> first[d + 1];  // the point at which a vertex appeared
    in_parallel(threads, d + 1, [&](int64_t c) {
      int32_t* v = &vertex[c * stride];
      for (int64_t i = 0; i < stride; i += kTile) {
        const int64_t count = std::min<int64_t>(kTile, stride - i);
        numbers[c].add(&key[c * stride + i], count, v + i);
        for (int64_t k = i; k < i + count; ++k)
          if (v[k] == static_cast<int64_t>(first[c].size())) first[c].push_back(static_cast<int32_t>(k));
      }
    });
    renumber(shape, numbers, first, threads);
  }

  // Numbers all colours' vertices together, in the order of the points: those of a point lie side by side.
  template <class Key>
  void renumber(const LatticeShape<d>& shape, const Numbering<Key> (&numbers)[d + 1],
                const std::vector<int32_t> (&first)[d + 1], int threads) {
    std::vector<int32_t> number[d + 1];
    size_t at[d + 1] = {};
    for (int c = 0; c <= d; ++c) number[c].resize(first[c].size() + 1);
    vertices = 0;
    for (int64_t point = 0; point < stride;) {
      int64_t next = stride;
      for (int c = 0; c <= d; ++c) {
        if (at[c] < first[c].size() && first[c][at[c]] == point) number[c][at[c]++] = static_cast<int32_t>(vertices++);
        if (at[c] < first[c].size()) next = std::min<int64_t>(next, first[c][at[c]]);
      }
      point = next;
    }
    for (int c = 0; c <= d; ++c) number[c].back() = static_cast<int32_t>(vertices);  // of those that are absent
    in_parallel(threads, d + 1, [&](int64_t c) {
      int32_t* v = &vertex[c * stride];
      for (int64_t i = 0; i < stride; ++i) v[i] = number[c][v[i]];
    });
    chains = Array<uint32_t>((d + 1) * (vertices + 1) + kSlack);
    std::fill_n(&vertex[(d + 1) * stride], kSlack, 0);
    std::fill_n(&chains[(d + 1) * (vertices + 1)], kSlack, 0);
    in_parallel(threads, d + 1, [&](int64_t axis) { link(shape, numbers, number, static_cast<int>(axis)); });
  }

  template <class Key>
  void link(const LatticeShape<d>& shape, const Numbering<Key> (&numbers)[d + 1],
            const std::vector<int32_t> (&number)[d + 1], int axis) {
    const Array<int32_t> up(vertices);
    std::vector<uint8_t> has_lower(vertices + 1, 0);
    for (int c = 0; c <= d; ++c) {
      const int above = c == d ? 0 : c + 1;
      const std::vector<Key>& keys = numbers[c].keys();
      for (size_t i = 0; i < keys.size(); i += kTile) {
        int32_t found[kTile];
        const int64_t count = std::min<int64_t>(kTile, keys.size() - i);
        numbers[above].find(&keys[i], count, static_cast<Key>(shape.up(axis, c)), found);
        for (int64_t k = 0; k < count; ++k) {
          const int32_t higher = number[above][found[k]];
          up[number[c][i + k]] = higher;
          has_lower[higher] = 1;
        }
      }
    }
    uint32_t* chain = &chains[axis * (vertices + 1)];
    for (int64_t i = 0; i < vertices; ++i) {
      if (has_lower[i]) continue;
      *chain++ = static_cast<uint32_t>(i) | kStart;
      for (int32_t next = up[i]; next < vertices; next = up[next]) *chain++ = static_cast<uint32_t>(next);
    }
    *chain = kStart;
  }
};
}  // namespace advcam::cpu
