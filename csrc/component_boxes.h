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

namespace cpu {
void component_boxes(const ComponentBoxes&, int threads);
}
}  // namespace advcam
