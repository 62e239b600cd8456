// A permutohedral lattice on a CPU: which vertices each pixel lies between, and the chains along which these are
// blurred.
//
// Pixels come in patches. A patch has copies of the vertices that it needs, some hundreds, which stay in a close cache
// while it is worked on, and which no other thread writes to.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/array.h"
#include "cpu/simd.h"
#include "permutohedral.h"

namespace advcam::cpu {
constexpr int kTile = 64;  // pixels, or keys, that are worked on together
constexpr int kSide = 32;  // of a patch; a tile is two lines of one

// The patches of an image, none of more than kSide * kSide pixels. What of a patch lies outside repeats its last
// column and line.
struct Patches {
  int64_t height, width, lines, across, count, tiles;  // lines, tiles: of a patch

  Patches(int64_t h, int64_t w)
      : height(h),
        width(w),
        lines(std::min<int64_t>(kSide, (h + 1) / 2 * 2)),
        across((w + kSide - 1) / kSide),
        count(across * ((h + lines - 1) / lines)),
        tiles(lines * kSide / kTile) {}
  int64_t slots() const { return lines * kSide; }
  int64_t left(int64_t patch) const { return patch % across * kSide; }
  int64_t top(int64_t patch, int64_t tile) const { return patch / across * lines + tile * (kTile / kSide); }
  bool inside(int64_t x, int64_t y) const { return x < width && y < height; }
  bool whole(int64_t patch, int64_t tile) const {
    return inside(left(patch) + kSide - 1, top(patch, tile) + kTile / kSide - 1);
  }
};

// Keys to numbers in the order of their first appearance: open addressing, at most a quarter full. Most keys lie in one
// of the first two places where they are looked for, so these are tried for a tile without a branch, and the other keys
// are found one by one.
template <class Key>
class Numbering {
 public:
  explicit Numbering(int bits) : slots_((size_t{1} << bits) + 1, Slot{kNone, 0}), shift_(64 - bits) {}

  void clear() { std::fill(slots_.begin(), slots_.end(), Slot{kNone, 0}), keys_.clear(); }
  void add(const Key* keys, int64_t count, int32_t* numbers) {
    int32_t others[kTile], n = 0;
    for (int32_t i = 0; i < count; ++i) {
      const Slot* slot = &slots_[wanted(keys[i])];
      const int32_t first = -(slot[0].key == keys[i]), second = -(slot[1].key == keys[i]);
      numbers[i] = (slot[0].number & first) | (slot[1].number & second);
      others[n] = i, n += !(first | second);
    }
    for (int32_t k = 0; k < n; ++k) numbers[others[k]] = add(keys[others[k]]);
  }
  // The numbers of keys + step, or `absent`.
  void find(const Key* keys, int64_t count, Key step, int32_t absent, int32_t* numbers) const {
    int32_t others[kTile], n = 0;
    for (int32_t i = 0; i < count; ++i) {
      const Key key = keys[i] + step;
      const Slot* slot = &slots_[wanted(key)];
      const int32_t first = -(slot[0].key == key), second = -(slot[1].key == key);
      numbers[i] = (slot[0].number & first) | (slot[1].number & second) | (absent & ~(first | second));
      others[n] = i, n += !(first | second | (slot[0].key == kNone) | (slot[1].key == kNone));
    }
    for (int32_t k = 0; k < n; ++k) {
      const Slot& slot = slots_[place(keys[others[k]] + step)];
      if (slot.key != kNone) numbers[others[k]] = slot.number;
    }
  }
  const std::vector<Key>& keys() const { return keys_; }
  void renumber(const int32_t* numbers) {
    for (Slot& slot : slots_) slot.number = numbers[slot.number];
  }
  // All keys and their numbers, in the order of their places. The hash of a sum is the sum of the hashes: keys + step
  // are found in the order of their places too, and a look-up finds what it wants in the cache.
  void in_order(Key* keys, int32_t* numbers) const {
    size_t n = 0;
    for (size_t i = 0; n < keys_.size(); ++i) {
      keys[n] = slots_[i].key, numbers[n] = slots_[i].number;
      n += slots_[i].key != kNone;
    }
  }

 private:
  static constexpr Key kNone = -1;
  struct Slot {
    Key key;
    int32_t number;
  };
  std::vector<Slot> slots_;  // a power of two, and one that stays free
  int shift_;
  std::vector<Key> keys_;

  size_t wanted(Key key) const { return (static_cast<uint64_t>(key) * 0x9e3779b97f4a7c15u) >> shift_; }
  size_t place(Key key) const {
    size_t at = wanted(key);
    while (slots_[at].key != key && slots_[at].key != kNone) at = at + 2 < slots_.size() ? at + 1 : 0;
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
    slots_.assign(slots_.size() * 2 - 1, Slot{kNone, 0});
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
constexpr int kSlack = 32;  // behind the arrays that are looked into ahead of time

template <class T>
struct Lattice {
  int corners = 0;
  int64_t vertices = 0, slots = 0;
  Array<uint16_t> corner;       // [patches, tiles, corners, kTile]  copies of each pixel, from the patch's first on
  Array<T> weight;              // [patches, tiles, corners, kTile]  0 outside the image
  std::vector<int32_t> copies;  // [patches + 1]  where the copies of each patch begin
  std::vector<int32_t> first;   // [patches + 1]  the first vertex that no patch before this one has
  Array<int32_t> vertex;        // [copies]
  Array<int32_t> begin, copy;   // [vertices + 1], [copies]  of each vertex its copies, in the order of the patches
  Array<uint32_t> chains;       // [corners, vertices + 1]  neighbours along the axis one after another; one is no chain
  std::vector<int64_t> linked;  // [corners]  how many vertices the chains of an axis have

  const uint32_t* chain(int axis) const { return chains.get() + axis * (vertices + 1); }
  int64_t bytes() const {  // nearly
    return corners * (int64_t(first.size() - 1) * slots * (sizeof(T) + 2) + 4 * vertices) + 12 * copies.back();
  }
  int64_t at(int64_t patch, int64_t tile) const { return (patch * slots + tile * kTile) * corners; }
};

template <int d, class Key, class T>
class LatticeBuilder {
 public:
  // fill(left, y, n, f) writes the features [d, kTile] of the kSide pixels from (left, y) on to f[.][n] on.
  template <class Fill>
  LatticeBuilder(const Patches& patches, const LatticeShape<d>& shape, const Fill& fill, int threads,
                 Lattice<T>* lattice)
      : patches_(patches), shape_(shape), to_(*lattice), name_(patches.count) {
    const int64_t size = patches.count * (d + 1) * patches.slots();
    to_.corners = d + 1, to_.slots = patches.slots();
    to_.corner = Array<uint16_t>(size), to_.weight = Array<T>(size);
    constexpr int64_t kJob = 4;
    in_parallel(threads, (patches.count + kJob - 1) / kJob, [&](int64_t job) {
      Scratch scratch;
      for (int64_t p = job * kJob; p < std::min(patches.count, (job + 1) * kJob); ++p) locate(p, fill, &scratch);
    });
    to_.copies.assign(1, 0);
    for (const Names& of : name_) to_.copies.push_back(to_.copies.back() + of.first[d + 1]);
    to_.vertex = Array<int32_t>(to_.copies.back()), to_.copy = Array<int32_t>(to_.copies.back());
    in_parallel(threads, d + 1, [&](int64_t c) { number(c); });  // a colour's vertices are no other's: one job each
    order();
    in_parallel(threads, d + 1, [&](int64_t c) { renumber(c); });
    in_parallel(threads, d + 1, [&](int64_t c) { find_neighbours(c); });
    in_parallel(threads, d + 1, [&](int64_t axis) { link(axis); });
  }

 private:
  struct Names {  // of a patch's copies
    std::vector<Key> key;
    int32_t first[d + 2] = {};  // of a colour; how many there are
  };
  struct Scratch {
    Numbering<Key> numbers{10};  // it seldom grows: a photo has some hundred vertices of a colour here
    Array<Key> key{(d + 1) * kSide * kSide};
  };
  struct Colour {
    Numbering<Key> numbers{13};
    std::vector<int32_t> patch, count;  // where a vertex appeared first, and of how many copies
    std::vector<int32_t> number;        // in the lattice; behind the last, that of no vertex
  };
  const Patches& patches_;
  const LatticeShape<d>& shape_;
  Lattice<T>& to_;
  std::vector<Names> name_;  // [patches]
  Array<int32_t> up_;        // [d + 1, vertices]  the neighbour along each axis; how many vertices there are: none
  Colour colour_[d + 1];

  template <class Fill>
  void locate(int64_t patch, const Fill& fill, Scratch* scratch) {
    const int64_t left = patches_.left(patch), slots = to_.slots;
    for (int64_t t = 0; t < patches_.tiles; ++t) {
      const int64_t top = patches_.top(patch, t), at = to_.at(patch, t);
      float f[d][kTile], w[d + 1][kTile];
      Key k[d + 1][kTile];
      for (int n = 0; n < kTile; n += kSide) fill(left, std::min(top + n / kSide, patches_.height - 1), n, f);
      simplices(shape_, f, w, k);
      for (int c = 0; c <= d; ++c) {
        std::copy_n(w[c], kTile, &to_.weight[at + c * kTile]);
        std::copy_n(k[c], kTile, &scratch->key[c * slots + t * kTile]);
      }
      if (patches_.whole(patch, t)) continue;
      for (int n = 0; n < kTile; ++n)
        for (int c = 0; c <= d && !patches_.inside(left + n % kSide, top + n / kSide); ++c)
          to_.weight[at + c * kTile + n] = T(0);
    }
    Names& names = name_[patch];
    for (int c = 0; c <= d; ++c) {
      scratch->numbers.clear();
      for (int64_t i = 0; i < slots; i += kTile) {
        int32_t numbers[kTile];
        scratch->numbers.add(&scratch->key[c * slots + i], kTile, numbers);
        uint16_t* corner = &to_.corner[to_.at(patch, i / kTile) + c * kTile];
        for (int n = 0; n < kTile; ++n) corner[n] = static_cast<uint16_t>(names.first[c] + numbers[n]);
      }
      const std::vector<Key>& keys = scratch->numbers.keys();
      names.key.insert(names.key.end(), keys.begin(), keys.end());
      names.first[c + 1] = static_cast<int32_t>(names.key.size());
    }
  }

  void number(int64_t c) {
    Colour& own = colour_[c];
    const auto note = [&](int64_t patch) {
      own.patch.resize(own.numbers.keys().size(), static_cast<int32_t>(patch));
      own.count.resize(own.numbers.keys().size(), 0);
    };
    for (int64_t p = 0; p < patches_.count; ++p) {
      for (int32_t i = name_[p].first[c]; i < name_[p].first[c + 1]; i += kTile) {
        const int32_t n = std::min(kTile, name_[p].first[c + 1] - i);
        int32_t* v = &to_.vertex[to_.copies[p] + i];
        own.numbers.add(&name_[p].key[i], n, v);
        note(p);
        for (int32_t k = 0; k < n; ++k) ++own.count[v[k]];
      }
    }
    if (patches_.height * patches_.width % 4) {
      // Kraehenbuehl's code takes four points at a time. Those missing lie at 0; their vertices take part in the blur.
      float f[d][kTile] = {}, w[d + 1][kTile];
      Key k[d + 1][kTile];
      int32_t v;
      simplices(shape_, f, w, k);
      own.numbers.add(k[c], 1, &v);
      note(patches_.count - 1);
    }
  }

  // Numbers all colours' vertices together, in the order of the patches; those of a patch with few copies come first,
  // so that a loop over the copies of a vertex is as long as the one before.
  void order() {
    constexpr int32_t kClasses = 16;
    std::vector<int32_t> place(patches_.count * kClasses + 1, 0);
    const auto bucket = [&](const Colour& own, size_t i) {
      return own.patch[i] * kClasses + std::min(own.count[i], kClasses - 1);
    };
    to_.vertices = 0;
    for (const Colour& own : colour_) {
      to_.vertices += own.count.size();
      for (size_t i = 0; i < own.count.size(); ++i) ++place[bucket(own, i) + 1];
    }
    for (size_t i = 1; i < place.size(); ++i) place[i] += place[i - 1];
    for (int64_t p = 0; p <= patches_.count; ++p) to_.first.push_back(place[p * kClasses]);
    to_.begin = Array<int32_t>(to_.vertices + 1), to_.begin[0] = 0;
    for (Colour& own : colour_) {
      for (size_t i = 0; i < own.count.size(); ++i) {
        own.number.push_back(place[bucket(own, i)]++);
        to_.begin[own.number.back() + 1] = own.count[i];
      }
      own.number.push_back(static_cast<int32_t>(to_.vertices));
    }
    for (int64_t i = 0; i < to_.vertices; ++i) to_.begin[i + 1] += to_.begin[i];
    up_ = Array<int32_t>((d + 1) * to_.vertices);
    to_.chains = Array<uint32_t>((d + 1) * (to_.vertices + 1) + kSlack), to_.linked.resize(d + 1);
    std::fill_n(&to_.chains[(d + 1) * (to_.vertices + 1)], kSlack, 0);
  }

  void renumber(int64_t c) {
    Colour& own = colour_[c];
    own.numbers.renumber(own.number.data());
    std::fill(own.count.begin(), own.count.end(), 0);
    for (int64_t p = 0; p < patches_.count; ++p) {
      for (int32_t i = to_.copies[p] + name_[p].first[c]; i < to_.copies[p] + name_[p].first[c + 1]; ++i) {
        const int32_t n = own.number[to_.vertex[i]];
        to_.copy[to_.begin[n] + own.count[to_.vertex[i]]++] = i;
        to_.vertex[i] = n;
      }
    }
  }

  // The neighbours of a colour's vertices, one step up along each axis.
  void find_neighbours(int64_t c) {
    const Colour &own = colour_[c], &above = colour_[c == d ? 0 : c + 1];
    const int64_t size = own.numbers.keys().size();
    const Array<Key> keys(size + 1);
    const Array<int32_t> number(size + 1);
    own.numbers.in_order(keys.get(), number.get());
    for (int axis = 0; axis <= d; ++axis) {
      const Key step = static_cast<Key>(shape_.up(axis, static_cast<int>(c)));
      int32_t found[kTile], *up = &up_[axis * to_.vertices];
      for (int64_t i = 0; i < size; i += kTile) {
        const int64_t count = std::min<int64_t>(kTile, size - i);
        above.numbers.find(&keys[i], count, step, static_cast<int32_t>(to_.vertices), found);
        for (int64_t k = 0; k < count; ++k) up[number[i + k]] = found[k];
      }
    }
  }

  // All chains of an axis grow side by side, a vertex at a time, without a branch that depends on a vertex.
  void link(int64_t axis) {
    const int32_t absent = static_cast<int32_t>(to_.vertices), *up = &up_[axis * to_.vertices];
    std::vector<uint8_t> has_lower(to_.vertices + 1, 0);
    for (int32_t i = 0; i < absent; ++i) has_lower[up[i]] = 1;
    const Array<int32_t> vertex(to_.vertices + 1), chain(to_.vertices + 1);  // in the order in which they are found
    int64_t chains = 0, n = 0;
    for (int32_t i = 0; i < absent; ++i) {
      vertex[chains] = i, chain[chains] = static_cast<int32_t>(chains);
      chains += !has_lower[i] & (up[i] != absent);
    }
    std::vector<int32_t> place(chains + 1, 0);
    for (int64_t end = chains; n < end;) {  // places hold the length of a chain, for now
      const int64_t level = end;
      for (; n < level; ++n) {
        ++place[chain[n] + 1];
        vertex[end] = up[vertex[n]], chain[end] = chain[n];
        end += vertex[end] != absent;
      }
    }
    for (int64_t i = 0; i < chains; ++i) place[i + 1] += place[i];
    uint32_t* out = &to_.chains[axis * (to_.vertices + 1)];
    for (int64_t i = 0; i < n; ++i)
      out[place[chain[i]]++] = static_cast<uint32_t>(vertex[i]) | (i < chains ? kStart : 0u);
    out[n] = kStart;
    to_.linked[axis] = n;
  }
};

template <int d, class T, class Fill>
void build_lattice(const Patches& patches, const LatticeShape<d>& shape, const Fill& fill, int threads,
                   Lattice<T>* lattice) {
  if (shape.bits < 32)
    LatticeBuilder<d, int32_t, T>(patches, shape, fill, threads, lattice);
  else
    LatticeBuilder<d, int64_t, T>(patches, shape, fill, threads, lattice);
}
}  // namespace advcam::cpu
