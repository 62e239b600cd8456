// Element types that cross the boundary between the bindings and the kernels.
#pragma once

namespace advcam {
enum class DType : int { f32, f64, bf16, f16, none };  // none: the optional tensor is absent
}
