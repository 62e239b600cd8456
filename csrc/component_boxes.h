// component_boxes: the outlines of maps > level at every level, as boxes with the areas of their polygons.
//
// Foreground pixels, those above the level, are connected by sides and corners, background pixels by sides. An outline
// is the outer one of a component or that of a hole, and runs over the centres of the foreground pixels beside the
// background that it bounds: that of a hole of one pixel is a diamond of area 2. Every run of foreground in a row has
// an end of two outlines, or two of one; outlines are found by what follows below an end. The area is that of the
// polygon through those centres, the box is x, y, x + w, y + h of all of them, clipped to the last column and row.
//
// Outlines of a level come in the order of OpenCV's tree: an outline before those that lie directly in it, and of
// those the one that starts last in raster order first. An outer one starts at its first pixel, that of a hole at the
// first pixel of the hole. Levels that leave the same foreground are found once.
#pragma once
#include <algorithm>
#include <cstdint>

namespace advcam {
struct ComponentBoxes {
  const uint8_t* maps;    // [batch, height, width]
  const int64_t* levels;  // [steps]               0 to 255, in any order
  int64_t* boxes;         // [capacity, 4]         written as far as it goes: x0 y0 x1 y1, the last ones included
  double* areas;          // [capacity]            written as far as it goes
  int64_t* offsets;       // [batch * steps + 1]   written: where each image's level begins, whatever the capacity
  int64_t batch, height, width, steps, capacity;  // sides of at most 32,767
};

// Integers of four bytes that the CUDA kernel needs: for each of its blocks 8 a pixel, and 9 for each outline that
// there may be, which has two ends in a row at least.
inline int64_t component_boxes_block(const ComponentBoxes& c) {
  return 8 * c.height * c.width + 9 * (c.height * (c.width + 1) / 2);
}
inline int64_t component_boxes_blocks(const ComponentBoxes& c) {
  constexpr int64_t kMost = 128, kIntegers = int64_t(1) << 27;
  const int64_t block = component_boxes_block(c), fit = block ? kIntegers / block : kMost;
  return std::min(c.batch * c.steps, std::max<int64_t>(1, std::min(kMost, fit)));
}
inline int64_t component_boxes_workspace(const ComponentBoxes& c) {
  return component_boxes_blocks(c) * component_boxes_block(c);
}

namespace cpu {
void component_boxes(const ComponentBoxes&, int threads);
}
namespace cuda {
// workspace: component_boxes_workspace integers; need not be cleared. Returns null, or the text of the CUDA error.
const char* component_boxes(const ComponentBoxes&, void* workspace, int device, void* stream);
}  // namespace cuda
}  // namespace advcam
