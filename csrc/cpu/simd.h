// Portable vector loops: plain code that the compiler turns into SSE, AVX2 and AVX-512 clones, picked at run time.
#pragma once
#include <cstdint>
#include <cstring>

// On leaf loops only: OpenMP outlines a parallel region before the clones are made, so a pragma inside a cloned
// function would run the default clone's code.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define ADVCAM_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), noinline))
#elif defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)  // older compilers do not know those names
#define ADVCAM_CLONES __attribute__((target_clones("avx512f", "avx2", "default"), noinline))
#else
#define ADVCAM_CLONES __attribute__((noinline))
#endif
#define ADVCAM_INLINE static inline __attribute__((always_inline))

// For what no plain loop becomes: functions that are called where wide() says that the machine has AVX-512 alone.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define ADVCAM_WIDE __attribute__((target("arch=x86-64-v4"), noinline))
#define ADVCAM_WIDE_INLINE static inline __attribute__((target("arch=x86-64-v4"), always_inline))
#endif

namespace advcam::cpu {
inline bool wide() {
#if defined(ADVCAM_WIDE)
  static const bool has = __builtin_cpu_supports("x86-64-v4");
  return has;
#else
  return false;
#endif
}

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

ADVCAM_INLINE float as_float(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
ADVCAM_INLINE uint32_t as_bits(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}

ADVCAM_INLINE float load(float a) { return a; }
ADVCAM_INLINE double load(double a) { return a; }
ADVCAM_INLINE float load(bf16 a) { return as_float(static_cast<uint32_t>(a.bits) << 16); }
// Branch-free binary16 -> binary32 for every input: the exponent is moved by one multiplication, which also
// normalises subnormals; infinities and NaN get the rest of their exponent by the comparison.
ADVCAM_INLINE float load(f16 a) {
  const uint32_t magnitude = static_cast<uint32_t>(a.bits & 0x7fffu) << 13, sign = (a.bits & 0x8000u) << 16;
  const uint32_t scaled = as_bits(as_float(magnitude) * as_float(0x77800000u));  // * 2^112
  return as_float((magnitude >= 0x0f800000u ? scaled | 0x7f800000u : scaled) | sign);
}

ADVCAM_INLINE void store(float& d, float a) { d = a; }
ADVCAM_INLINE void store(double& d, double a) { d = a; }
ADVCAM_INLINE void store(bf16& d, float a) {  // to nearest, ties to even; NaN stays NaN
  const uint32_t u = as_bits(a), rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  d.bits = static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
ADVCAM_INLINE void store(f16& d, float a) {  // to nearest, ties to even; overflow to infinity, NaN stays NaN
  const uint32_t u = as_bits(a), magnitude = u & 0x7fffffffu, sign = (u >> 16) & 0x8000u;
  // Normal results: rebias the exponent by -112 and round at bit 13. Subnormal results: adding 0.5 leaves the
  // rounded value in the low bits of the sum, because one unit of the sum is 2^-24, the smallest f16.
  const uint32_t normal = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t subnormal = as_bits(as_float(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t r = magnitude < 0x38800000u ? subnormal : normal;
  r = magnitude >= 0x477ff000u ? 0x7c00u : r;
  r = magnitude > 0x7f800000u ? 0x7e00u : r;
  d.bits = static_cast<uint16_t>(r | sign);
}
}  // namespace advcam::cpu
