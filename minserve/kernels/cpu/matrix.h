// A weight matrix of [outputs, inputs] as it lies in memory; native_products.py has the same
// structure.
//
// Codes are packed into panels: [outputs / panel, inputs / depth, panel, depth], the last panel and
// step filled up with zeros. So what one step of a product reads lies side by side, and a panel's
// next step behind it.
#pragma once
#include "vectors.h"

namespace {

enum Kind : i64 { dense, int8 };

// A pointer that a kind does not need is 0. Scales and zeros are [outputs] for a group of 0, which
// is all inputs of an output. The bias has the type of x and y.
struct Matrix {
    i64 kind, outputs, inputs, group;
    const void* codes;
    const float *scales, *zeros;
    const void* bias;
};

// Outputs of a panel, whatever the kind: two vectors of sums.
template <class T> constexpr i64 panel = 2 * lanes<Sum<T>>;

}  // namespace
