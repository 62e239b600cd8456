// component_boxes on a CPU. Rows are swept once for kLanes levels at a time, a vector lane each. Where every run of
// foreground goes on as one run, which is nearly everywhere in a smooth map, the ends of the runs are followed for all
// levels at once; where runs are born, die, part or meet, level by level, and there outlines are made and joined.
#include "component_boxes.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "cpu/array.h"
#include "cpu/simd.h"

namespace advcam::cpu {
namespace {
constexpr int kLanes = 64;
constexpr int kWide = 8;  // ends of runs in a row that are followed for all lanes at once
using Lanes = int16_t[kLanes];

struct Outline {
  int32_t same;                // an outline joined earlier, itself if it is the first
  int32_t near;                // the one whose end lies left of the start, -1 for none
  int16_t x0, x1, y0, y1;      // of the pixels that it runs over
  int16_t lane, outer;         // outer: of a component, else of a hole
  int64_t area2;               // twice the area, that of a hole below 0
  int32_t above, child, next;  // in the tree: what it lies in, the last to start in it, the one to start before it
};

struct Box {
  int16_t x0, y0, x1, y1;
  double area;
};

// What was seen of the ends of runs since something happened in their lane. [kWide, kLanes] each
struct Chains {
  Lanes low[kWide], high[kWide];
  int32_t area2[kWide][kLanes];
};

// Which lanes have runs that go on one by one, and what their ends add to the chains. p and c: the ends of the row
// above and of this one, np and nc their numbers.
ADVCAM_CLONES void follow(const Lanes* __restrict p, const Lanes* __restrict c, const int16_t* __restrict np,
                          const int16_t* __restrict nc, int most, Chains* __restrict chains, int16_t* __restrict good) {
  for (int l = 0; l < kLanes; ++l) good[l] = (np[l] == nc[l]) & (nc[l] <= kWide);
  for (int k = 0; k < most; k += 2) {
    for (int l = 0; l < kLanes; ++l) {
      const int16_t above = p[k + 1][l] + 1, here = c[k + 1][l] + 1;
      const int16_t linked = (p[k][l] <= here) & (c[k][l] <= above);
      const int16_t apart = (p[k + 2][l] > here) & (c[k + 2][l] > above);
      good[l] &= (linked | (nc[l] <= k)) & (apart | (nc[l] <= k + 2));
    }
  }
  for (int k = 0; k < most; ++k) {
    const bool right = k % 2;
    for (int l = 0; l < kLanes; ++l) {
      const int16_t keep = good[l] & (nc[l] > k), a = p[k][l], b = c[k][l];
      const int16_t low = chains->low[k][l], high = chains->high[k][l];
      chains->low[k][l] = keep & (b < low) ? b : low;
      chains->high[k][l] = keep & (b > high) ? b : high;
      const int32_t edge = right ? 2 * std::min(a, b) + (a != b) : (a != b) - 2 * std::max(a, b);
      chains->area2[k][l] += keep ? edge : 0;
    }
  }
}

// Ranks of one group of levels, [1 + width + 1] with background at both ends, and where neighbours differ.
ADVCAM_CLONES void differences(const uint8_t* __restrict ranks, int width, int first, uint8_t* __restrict clipped,
                               uint8_t* __restrict differ) {
  for (int x = 0; x < width; ++x) {
    const int above = ranks[x] > first ? ranks[x] - first : 0;
    clipped[x + 1] = static_cast<uint8_t>(above < kLanes ? above : kLanes);
  }
  for (int x = 0; x <= width; ++x) differ[x] = clipped[x] != clipped[x + 1];
}

// All outlines of the levels `first` to `first + kLanes` of one map.
class Sweep {
 public:
  Sweep(const uint8_t* ranks, int height, int width, int first)
      : height_(height), width_(width), capacity_(width + kWide + 2) {
    ends_[0] = Array<Lanes>(capacity_), ends_[1] = Array<Lanes>(capacity_), labels_ = Array<Labels>(capacity_);
    for (Array<Lanes>& ends : ends_) std::memset(ends.get(), 0, (kWide + 2) * sizeof(Lanes));  // what `follow` may read
    clipped_.resize(width + 2), differ_.resize((width + 1 + 7) / 8 * 8);
    for (int y = 0; y <= height; ++y) {
      const int now = y % 2;
      std::memset(counts_[now], 0, sizeof counts_[now]);
      if (y < height) find_ends(ranks + int64_t(y) * width, first, now);
      const int most = std::max(most_[0], most_[1]);
      if (most == 0) continue;
      int16_t good[kLanes];
      follow(ends_[1 - now].get(), ends_[now].get(), counts_[1 - now], counts_[now], std::min(most, kWide), &chains_,
             good);
      for (int lane = 0; lane < kLanes; ++lane)
        if (!good[lane]) step(lane, y);
    }
  }

  // Boxes of all lanes, in OpenCV's order; counts [kLanes].
  std::vector<Box> boxes(int64_t* counts) {
    int32_t last[kLanes];
    std::fill_n(last, kLanes, -1);
    for (int32_t i = 0; i < static_cast<int32_t>(outlines_.size()); ++i) {
      Outline& o = outlines_[i];
      if (o.same != i) continue;
      const int32_t near = o.near < 0 ? -1 : root(o.near);
      o.above = near < 0 || outlines_[near].outer != o.outer ? near : outlines_[near].above;
      int32_t& sibling = o.above < 0 ? last[o.lane] : outlines_[o.above].child;
      o.next = sibling, sibling = i;
    }
    std::vector<Box> found;
    found.reserve(outlines_.size());
    for (int lane = 0; lane < kLanes; ++lane) {
      const size_t before = found.size();
      for (int32_t i = last[lane]; i >= 0; i = following(i)) found.push_back(box_of(outlines_[i]));
      counts[lane] = static_cast<int64_t>(found.size() - before);
    }
    return found;
  }

 private:
  using Labels = int32_t[kLanes];
  int height_, width_, capacity_, most_[2] = {};
  Array<Lanes> ends_[2];  // of the runs of this row and of the one above, [width + 1 and more, kLanes]
  alignas(64) Lanes counts_[2] = {};
  alignas(64) Chains chains_ = {};
  Array<Labels> labels_;        // outlines of the ends of the row above
  std::vector<int32_t> fresh_;  // and of one lane of this row
  std::vector<uint8_t> clipped_, differ_;
  std::vector<Outline> outlines_;  // a lane's in raster order of their starts

  void find_ends(const uint8_t* ranks, int first, int now) {
    differences(ranks, width_, first, clipped_.data(), differ_.data());
    int16_t* count = counts_[now];
    Lanes* ends = ends_[now].get();
    for (int block = 0; block <= width_; block += 8) {
      uint64_t word;
      std::memcpy(&word, differ_.data() + block, 8);
      for (; word; word &= word - 1) {
        const int x = block + __builtin_ctzll(word) / 8, left = clipped_[x], right = clipped_[x + 1];
        const int16_t end = static_cast<int16_t>(left < right ? x : x - 1);
        for (int l = std::min(left, right), top = std::max(left, right); l < top; ++l) ends[count[l]++][l] = end;
      }
    }
    most_[now] = *std::max_element(count, count + kLanes);
  }

  int32_t root(int32_t i) {
    while (outlines_[i].same != i) i = outlines_[i].same = outlines_[outlines_[i].same].same;
    return i;
  }
  int32_t start(int lane, bool outer, int x, int y, int32_t near) {
    const int32_t i = static_cast<int32_t>(outlines_.size());
    const auto at = static_cast<int16_t>(x), top = static_cast<int16_t>(outer ? y : y - 1);
    outlines_.push_back(
        {i, near, at, at, top, static_cast<int16_t>(y), static_cast<int16_t>(lane), outer, 0, -1, -1, -1});
    return i;
  }
  void join(int32_t i, int32_t j) {
    i = root(i), j = root(j);
    if (i == j) return;
    Outline &kept = outlines_[std::min(i, j)], &gone = outlines_[std::max(i, j)];
    kept.x0 = std::min(kept.x0, gone.x0), kept.x1 = std::max(kept.x1, gone.x1);
    kept.y0 = std::min(kept.y0, gone.y0), kept.y1 = std::max(kept.y1, gone.y1);
    kept.area2 += gone.area2, gone.same = std::min(i, j);
  }
  void reach(Outline& o, int16_t low, int16_t high, int y) {
    o.x0 = std::min(o.x0, low), o.x1 = std::max(o.x1, high), o.y1 = std::max(o.y1, static_cast<int16_t>(y));
  }

  // What becomes of the outlines of one lane between row y - 1 and row y.
  void step(int lane, int y) {
    const int now = y % 2, n = counts_[1 - now][lane], m = counts_[now][lane];
    const Lanes *p = ends_[1 - now].get(), *c = ends_[now].get();
    for (int k = 0; k < n; ++k) {
      Outline& o = outlines_[root(labels_[k][lane])];
      reach(o, k < kWide ? chains_.low[k][lane] : p[k][lane], k < kWide ? chains_.high[k][lane] : p[k][lane], y - 1);
      if (k < kWide) o.area2 += chains_.area2[k][lane];
    }
    fresh_.resize(m);
    int i = 0, j = 0;
    while (i < n || j < m) {
      if (j == m || (i < n && p[i + 1][lane] + 1 < c[j][lane])) {
        join(labels_[i][lane], labels_[i + 1][lane]), i += 2;
      } else if (i == n || c[j + 1][lane] + 1 < p[i][lane]) {
        fresh_[j] = fresh_[j + 1] = start(lane, true, c[j][lane], y, j ? fresh_[j - 1] : -1), j += 2;
      } else {
        go_on(lane, y, &i, &j);
      }
    }
    for (int k = 0; k < m; ++k) {
      labels_[k][lane] = fresh_[k];
      if (k >= kWide) continue;  // reached when this row is the one above
      chains_.low[k][lane] = chains_.high[k][lane] = c[k][lane], chains_.area2[k][lane] = 0;
    }
  }

  // Runs i of the row above and j of this one are linked, the first link of both: follows all links to the right.
  void go_on(int lane, int y, int* i, int* j) {
    const int now = y % 2, n = counts_[1 - now][lane], m = counts_[now][lane];
    const Lanes *p = ends_[1 - now].get(), *c = ends_[now].get();
    int32_t left = fresh_[*j] = labels_[*i][lane];
    for (;;) {
      const int a = p[*i][lane], b = p[*i + 1][lane], from = c[*j][lane], to = c[*j + 1][lane];
      outlines_[root(left)].area2 -= 2 * std::max(a, from) - (a != from);
      const int edge = 2 * std::min(b, to) + (b != to);
      if (*j + 2 < m && c[*j + 2][lane] <= b + 1) {  // a hole begins below run i, or what will turn out not to be one
        left = fresh_[*j + 1] = fresh_[*j + 2] = start(lane, false, to, y, fresh_[*j]);
        outlines_[left].area2 += edge, *j += 2;
      } else if (*i + 2 < n && p[*i + 2][lane] <= to + 1) {  // the background above run j ends
        Outline& o = outlines_[root(labels_[*i + 1][lane])];
        o.area2 += edge, o.y1 = std::max(o.y1, static_cast<int16_t>(y));
        join(labels_[*i + 1][lane], labels_[*i + 2][lane]), left = labels_[*i + 2][lane], *i += 2;
      } else {
        fresh_[*j + 1] = labels_[*i + 1][lane];
        outlines_[root(fresh_[*j + 1])].area2 += edge, *i += 2, *j += 2;
        return;
      }
    }
  }

  int32_t following(int32_t i) const {
    if (outlines_[i].child >= 0) return outlines_[i].child;
    while (outlines_[i].next < 0 && outlines_[i].above >= 0) i = outlines_[i].above;
    return outlines_[i].next;
  }
  Box box_of(const Outline& o) const {
    return {o.x0, o.y0, static_cast<int16_t>(std::min(o.x1 + 1, width_ - 1)),
            static_cast<int16_t>(std::min(o.y1 + 1, height_ - 1)), 0.5 * static_cast<double>(std::abs(o.area2))};
  }
};

// The levels of one image that differ by the foreground that they leave, and the boxes found at them.
struct Image {
  std::vector<uint8_t> ranks;  // [height * width]  how many of the levels are below
  std::vector<int> lane;       // [steps]           a level's, or `lanes` if it leaves no foreground
  int lanes = 0;
  std::vector<std::vector<Box>> boxes;  // by group of kLanes
  std::vector<int64_t> begin;           // [whole groups of lanes]  of each lane's boxes within its group
};

Image ranked(const ComponentBoxes& c, int64_t item) {
  const int64_t pixels = c.height * c.width;
  const uint8_t* values = c.maps + item * pixels;
  bool seen[256] = {};
  for (int64_t i = 0; i < pixels; ++i) seen[values[i]] = true;
  const int lowest = static_cast<int>(std::find(seen, seen + 256, true) - seen);
  bool wanted[257] = {};  // by the smallest value that is foreground; 256: none is
  std::array<int, 256> smallest;
  for (int level = 255, next = 256; level >= 0; --level) {
    smallest[level] = next;
    if (seen[level]) next = level;
  }
  for (int64_t t = 0; t < c.steps; ++t) wanted[smallest[c.levels[t]]] = true;
  Image image;
  std::array<int, 257> lane{};
  std::array<uint8_t, 256> rank{};
  for (int value = lowest; value < 256; ++value) {
    if (wanted[value]) lane[value] = image.lanes++;
    rank[value] = static_cast<uint8_t>(image.lanes);
  }
  lane[256] = image.lanes;
  for (int64_t t = 0; t < c.steps; ++t) image.lane.push_back(lane[smallest[c.levels[t]]]);
  image.ranks.resize(pixels);
  for (int64_t i = 0; i < pixels; ++i) image.ranks[i] = rank[values[i]];
  const int groups = (image.lanes + kLanes - 1) / kLanes;
  image.boxes.resize(groups), image.begin.resize(groups * kLanes);
  return image;
}

void sweep(const ComponentBoxes& c, Image* image, int group) {
  const int first = group * kLanes;
  Sweep found(image->ranks.data(), static_cast<int>(c.height), static_cast<int>(c.width), first);
  int64_t counts[kLanes], *begin = image->begin.data() + first, total = 0;
  image->boxes[group] = found.boxes(counts);
  for (int l = 0; l < kLanes; ++l) begin[l] = total, total += counts[l];
}
}  // namespace

void component_boxes(const ComponentBoxes& c, int threads) {
  std::vector<Image> images(c.batch);
  in_parallel(threads, c.batch, [&](int64_t item) { images[item] = ranked(c, item); });
  std::vector<std::pair<int64_t, int>> jobs;
  for (int64_t item = 0; item < c.batch; ++item)
    for (int group = 0; group < static_cast<int>(images[item].boxes.size()); ++group) jobs.emplace_back(item, group);
  in_parallel(threads, static_cast<int64_t>(jobs.size()),
              [&](int64_t job) { sweep(c, &images[jobs[job].first], jobs[job].second); });
  int64_t total = 0, *offset = c.offsets;
  for (const Image& image : images) {
    for (int lane : image.lane) {
      *offset++ = total;
      if (lane == image.lanes) continue;
      const std::vector<Box>& boxes = image.boxes[lane / kLanes];
      const int64_t begin = image.begin[lane];
      const int64_t end = lane % kLanes == kLanes - 1 ? static_cast<int64_t>(boxes.size()) : image.begin[lane + 1];
      for (int64_t i = begin; i < end; ++i, ++total) {
        if (total >= c.capacity) continue;
        const Box& box = boxes[i];
        int64_t* to = c.boxes + 4 * total;
        to[0] = box.x0, to[1] = box.y0, to[2] = box.x1, to[3] = box.y1, c.areas[total] = box.area;
      }
    }
  }
  *offset = total;
}
}  // namespace advcam::cpu
