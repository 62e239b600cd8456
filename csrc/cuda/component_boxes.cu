// A block finds the outlines of one map at one level. Its elements are the left and right sides of foreground pixels
// that background touches. Followed with the foreground on the right, left sides go up and right sides down, and each
// leads to one other: outlines are the cycles of a permutation. The least element of each is found by doubling the
// steps. The sweep is made twice, to count the outlines of each level and, when their places are known, to write them.
#include "component_boxes.h"
#include "cuda/common.cuh"

namespace advcam {
namespace cuda {
namespace {
constexpr int kThreads = 256;

struct Level {
  const uint8_t* map;
  int height, width;
  int64_t level;

  __device__ __forceinline__ bool inside(int y, int x) const {
    return y >= 0 && x >= 0 && y < height && x < width && map[y * width + x] > level;
  }
};

// What the outlines of a block have, [outlines] each, behind the elements' arrays in the workspace.
struct Records {
  int *start, *x0, *x1, *y0, *y1, *child, *next, *above;
  unsigned* area4;  // four times the area, that of a hole below 0

  __device__ Records(int* memory, int most)
      : start(memory),
        x0(memory + most),
        x1(memory + 2 * most),
        y0(memory + 3 * most),
        y1(memory + 4 * most),
        child(memory + 5 * most),
        next(memory + 6 * most),
        above(memory + 7 * most),
        area4(reinterpret_cast<unsigned*>(memory + 8 * most)) {}
};

// A side by its pixel and its direction: 0 left, 1 above, 2 right, 3 below.
struct Side {
  int y, x, direction;
};
__device__ __forceinline__ int down(int direction) { return direction == 2 ? 1 : direction == 0 ? -1 : 0; }
__device__ __forceinline__ int right(int direction) { return direction == 1 ? 1 : direction == 3 ? -1 : 0; }

// The next side to the left or right of a pixel, and four times the area that the way there adds: the outline runs half
// a pixel within the sides, and turns once in all.
__device__ __forceinline__ Side advance(const Level& level, Side side, int* area4) {
  int area = side.direction == 2 ? 4 * (side.x + 1) : -4 * side.x;
  do {
    const int ahead_y = side.y + down(side.direction), ahead_x = side.x + right(side.direction);
    const int before = (side.direction + 3) % 4;  // the way out over the side is the one before it
    const int corner_y = ahead_y + down(before), corner_x = ahead_x + right(before);
    area -= 2;
    if (level.inside(corner_y, corner_x)) {
      side = {corner_y, corner_x, before};
      area += 1;
    } else if (level.inside(ahead_y, ahead_x)) {
      side.y = ahead_y, side.x = ahead_x;
    } else {
      side.direction = (side.direction + 1) % 4;
      area += 1;
    }
  } while (side.direction % 2);
  *area4 = area;
  return side;
}

// Elements are 2 * pixel and 2 * pixel + 1; a side of index start = y * (width + 1) + x lies left of column x.
__device__ __forceinline__ Side side_of(int element, int width) {
  const int pixel = element / 2;
  return {pixel / width, pixel % width, element % 2 ? 2 : 0};
}
__device__ __forceinline__ int element_at(const Level& level, int start) {
  const int y = start / (level.width + 1), x = start % (level.width + 1);
  return level.inside(y, x) ? 2 * (y * level.width + x) : 2 * (y * level.width + x - 1) + 1;
}

// least: of each element the index of the first side of its outline, else -1. Returns the array that has it.
__device__ __forceinline__ int* find_outlines(const Level& level, int* least, int* next, int* other_least,
                                              int* other_next) {
  const int elements = 2 * level.height * level.width;
  for (int e = threadIdx.x; e < elements; e += kThreads) {
    const Side side = side_of(e, level.width);
    const int outside = side.direction == 2 ? side.x + 1 : side.x - 1;
    const bool is = level.inside(side.y, side.x) && !level.inside(side.y, outside);
    least[e] = is ? side.y * (level.width + 1) + side.x + (side.direction == 2) : -1;
    if (!is) continue;
    int area4;
    const Side to = advance(level, side, &area4);
    next[e] = 2 * (to.y * level.width + to.x) + (to.direction == 2);
  }
  __syncthreads();
  for (int changed = 1; changed;) {
    changed = 0;
    for (int e = threadIdx.x; e < elements; e += kThreads) {
      const int mine = least[e];
      if (mine < 0) {
        other_least[e] = -1;
        continue;
      }
      const int to = next[e], there = least[to];
      other_least[e] = there < mine ? there : mine, other_next[e] = next[to];
      changed |= there < mine;
    }
    changed = block_reduce<kThreads>(changed, 0, NanMax());
    int* former = least;
    least = other_least, other_least = former;
    former = next, next = other_next, other_next = former;
  }
  return least;
}

// The sum of what the threads before have; *total: of all.
__device__ __forceinline__ int sum_before(int value, int* total) {
  ADVCAM_SHARED(int, sums, kThreads + 1);
  sums[threadIdx.x + 1] = value;
  __syncthreads();
  if (threadIdx.x == 0) {
    sums[0] = 0;
    for (int t = 1; t <= kThreads; ++t) sums[t] += sums[t - 1];
  }
  __syncthreads();
  const int before = sums[threadIdx.x];
  *total = sums[kThreads];
  __syncthreads();  // the next call writes `sums` again
  return before;
}

// Numbers the outlines in raster order of their starts, at the elements where they start; returns how many.
__device__ __forceinline__ int number_outlines(const Level& level, const int* least, int* number, int* starts) {
  const int elements = 2 * level.height * level.width, share = elements / kThreads + 1;
  const int from = threadIdx.x * share, first = from < elements ? from : elements;
  const int end = first + share < elements ? first + share : elements;
  int mine = 0, total;
  for (int e = first; e < end; ++e) mine += least[e] >= 0 && element_at(level, least[e]) == e;
  mine = sum_before(mine, &total);
  for (int e = first; e < end; ++e) {
    if (least[e] < 0 || element_at(level, least[e]) != e) continue;
    starts[mine] = least[e], number[e] = mine++;
  }
  __syncthreads();
  return total;
}

__device__ __forceinline__ void gather(const Level& level, const int* least, const int* number, const Records& r,
                                       int count) {
  const int line = level.width + 1;
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const int y = r.start[i] / line;
    r.x0[i] = level.width, r.x1[i] = 0, r.y0[i] = r.y1[i] = y, r.child[i] = r.next[i] = -1, r.area4[i] = 0;
    // the nearest side to the left in the row is another outline's
    int x = r.start[i] % line - 1;
    const bool within = level.inside(y, x);
    while (x >= 0 && level.inside(y, x - 1) == within) --x;
    r.above[i] = x < 0 ? -1 : number[element_at(level, least[element_at(level, y * line + x)])];
  }
  __syncthreads();
  for (int e = threadIdx.x; e < 2 * level.height * level.width; e += kThreads) {
    if (least[e] < 0) continue;
    const int i = number[element_at(level, least[e])];
    const Side side = side_of(e, level.width);
    int area4;
    advance(level, side, &area4);
    atomicMin(&r.x0[i], side.x), atomicMax(&r.x1[i], side.x), atomicMax(&r.y1[i], side.y);
    atomicAdd(&r.area4[i], static_cast<unsigned>(area4));
  }
  __syncthreads();
}

// One thread: the tree, and each outline's place in its order, into `place`.
__device__ __forceinline__ void put_in_order(const Level& level, const Records& r, int count, int* place) {
  const int line = level.width + 1;
  int last = -1;
  for (int i = 0; i < count; ++i) {
    const int near = r.above[i], start = r.start[i];
    const bool outer = level.inside(start / line, start % line);
    if (near >= 0 && level.inside(r.start[near] / line, r.start[near] % line) == outer) r.above[i] = r.above[near];
    const int above = r.above[i];
    r.next[i] = above < 0 ? last : r.child[above];
    (above < 0 ? last : r.child[above]) = i;
  }
  int at = last;
  for (int k = 0; k < count; ++k) {
    place[at] = k;
    if (r.child[at] >= 0) {
      at = r.child[at];
      continue;
    }
    while (r.next[at] < 0 && r.above[at] >= 0) at = r.above[at];
    at = r.next[at];
  }
}

template <class Area>
__device__ __forceinline__ void write(const Level& level, const Records& r, int count, const int* place, int64_t offset,
                                      int64_t* boxes, Area* areas, int64_t capacity) {
  const int line = level.width + 1, right_most = level.width - 1, lowest = level.height - 1;
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const int64_t to = offset + place[i];
    if (to >= capacity) continue;
    // a hole's outline runs above and below its rows too
    const int hole = !level.inside(r.start[i] / line, r.start[i] % line), x1 = r.x1[i] + 1, y1 = r.y1[i] + 1 + hole;
    boxes[4 * to] = r.x0[i], boxes[4 * to + 1] = r.y0[i] - hole;
    boxes[4 * to + 2] = x1 < right_most ? x1 : right_most, boxes[4 * to + 3] = y1 < lowest ? y1 : lowest;
    const int area4 = static_cast<int>(r.area4[i]);
    areas[to] = Area(0.25) * static_cast<Area>(area4 < 0 ? -area4 : area4);
  }
}

// A null `boxes`: only counts, each level's number into the offset after its own.
template <class Area>
__global__ void __launch_bounds__(kThreads)
    component_boxes_sweep(const uint8_t* __restrict__ maps, const int64_t* __restrict__ levels, int64_t* offsets,
                          int64_t* boxes, Area* areas, int* workspace, int64_t block_size, int64_t jobs, int steps,
                          int height, int width, int64_t capacity) {
  const int elements = 2 * height * width, most = static_cast<int>(int64_t(height) * (width + 1) / 2);
  int* memory = workspace + blockIdx.x * block_size;
  for (int64_t job = blockIdx.x; job < jobs; job += gridDim.x) {
    const Level level{maps + job / steps * height * width, height, width, levels[job % steps]};
    const int* least =
        find_outlines(level, memory, memory + elements, memory + 2 * int64_t(elements), memory + 3 * int64_t(elements));
    int* number = memory + elements;  // the steps are no longer needed
    const Records records(memory + 4 * int64_t(elements), most);
    const int count = number_outlines(level, least, number, records.start);
    if (!boxes) {
      if (threadIdx.x == 0) offsets[job + 1] = count;
      __syncthreads();
      continue;
    }
    gather(level, least, number, records, count);
    int* place = memory + 3 * int64_t(elements);
    if (threadIdx.x == 0) put_in_order(level, records, count, place);
    __syncthreads();
    write(level, records, count, place, offsets[job], boxes, areas, capacity);
    __syncthreads();  // the next job uses the memory again
  }
}

// Numbers of outlines to the places where each job's begin.
__global__ void __launch_bounds__(kThreads) component_boxes_offsets(int64_t* offsets, int64_t jobs) {
  ADVCAM_SHARED(int64_t, sums, kThreads);
  const int64_t share = jobs / kThreads + 1, from = threadIdx.x * share, first = from < jobs ? from : jobs;
  const int64_t end = first + share < jobs ? first + share : jobs;
  int64_t sum = 0;
  for (int64_t i = first; i < end; ++i) sum += offsets[i + 1];
  sums[threadIdx.x] = sum;
  __syncthreads();
  sum = 0;
  for (int t = 0; t < static_cast<int>(threadIdx.x); ++t) sum += sums[t];
  for (int64_t i = first; i < end; ++i) sum += offsets[i + 1], offsets[i + 1] = sum;
  if (threadIdx.x == 0) offsets[0] = 0;
}
}  // namespace

const char* component_boxes(const ComponentBoxes& c, void* workspace, int device, void* stream) {
  if (!fits_int(4 * c.height * (c.width + 1))) return "component_boxes takes maps of fewer than 2^29 pixels";
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return error_text(guard.error());
  const auto s = static_cast<cudaStream_t>(stream);
  const int64_t jobs = c.batch * c.steps, size = component_boxes_block(c);
  const unsigned blocks = grid_size(component_boxes_blocks(c));
  const int steps = static_cast<int>(c.steps), height = static_cast<int>(c.height), width = static_cast<int>(c.width);
  const auto sweep = [&](int64_t* boxes) {
    ADVCAM_LAUNCH(component_boxes_sweep<double>, blocks, kThreads, s, c.maps, c.levels, c.offsets, boxes, c.areas,
                  static_cast<int*>(workspace), size, jobs, steps, height, width, c.capacity);
  };
  if (jobs) sweep(nullptr);
  ADVCAM_LAUNCH(component_boxes_offsets, 1u, kThreads, s, c.offsets, jobs);
  if (jobs && c.capacity) sweep(c.boxes);
  return error_text(cudaGetLastError());
}

}  // namespace cuda
}  // namespace advcam
