// What a rectifier compares with: elements as integers, and a ceiling as the dtype has it.
#pragma once
#include <type_traits>

#include "cpu/simd.h"

namespace advcam::cpu {
template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Elements as integers of their width: compared, chosen and masked without any conversion, which vectorises for every
// type. Bits of floating-point numbers of one sign are in the order of the numbers; beyond infinity they are NaN.
template <class T>
struct Raw;
template <>
struct Raw<double> {
  typedef int64_t __attribute__((may_alias)) type;
  static constexpr type infinity = 0x7ff0000000000000;
};
template <>
struct Raw<float> {
  typedef int32_t __attribute__((may_alias)) type;
  static constexpr type infinity = 0x7f800000;
};
template <>
struct Raw<bf16> {
  typedef int16_t __attribute__((may_alias)) type;
  static constexpr type infinity = 0x7f80;
};
template <>
struct Raw<f16> {
  typedef int16_t __attribute__((may_alias)) type;
  static constexpr type infinity = 0x7c00;
};

template <class T>
struct Ceiling {
  typename Raw<T>::type value, least;  // what the ceiling is rounded to, and the least number that is not below it
};

template <class T>
ADVCAM_INLINE Ceiling<T> rounded(Acc<T> ceiling) {
  T t;
  store(t, ceiling);
  Ceiling<T> c;
  std::memcpy(&c.value, &t, sizeof t);
  c.least = load(t) < ceiling ? c.value + 1 : c.value;
  return c;
}
}  // namespace advcam::cpu
