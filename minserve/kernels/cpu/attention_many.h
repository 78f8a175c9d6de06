// Attention of many rows.
#pragma once
#include <algorithm>

#include "attention.h"
#include "vectors.h"

namespace {

// Many rows: each is a lane. Keys and values are widened once into scratch, and both products
// are dense ones along the rows, in which nothing is summed across lanes.
template <class T>
template <int W>
inline void Attention<T>::many(const Unit& u, i64 index, A* scratch) const {
    constexpr i64 R = W * L;
    A *q = scratch, *out = q + R * D, *scores = out + R * D, *k = scores + key_tile * R;
    A *v = k + key_tile * D, *most = v + key_tile * D, *weight = most + R;
    for (i64 row = 0; row < R; ++row) {  // scaled, a lane each
        widen(query(u, std::min(row, u.num_rows - 1)), k, D);
        for (i64 d = 0; d < D; ++d) q[d * R + row] = k[d] * A(c.scale);
    }
    std::fill(out, out + R * D, A(0));
    std::fill(most, most + R, -inf<A>);
    std::fill(weight, weight + R, A(0));
    const T *keys = (const T*)c.keys + u.kv_head * c.head_stride;
    const T *values = (const T*)c.values + u.kv_head * c.head_stride;
    i64 places[key_tile];
    for (i64 key = u.first_key, n; key < u.end_key; key += n) {
        // Tiles end at multiples of their size, whatever the first key, for the same sums.
        n = std::min(u.end_key - key, key_tile - key % key_tile);
        find(u, key, n, places);
        for (i64 j = 0; j < n; ++j) {
            widen(keys + places[j], k + j * D, D);
            widen(values + places[j], v + j * D, D);
        }
        // Whole blocks are faster; what scratch holds past n gives scores that are not read.
        i64 whole = (n + block_rows<W> - 1) / block_rows<W> * block_rows<W>;
        multiply<W>(scores, k, D, 1, q, whole, D, false);
        if (c.softcap != 0) cap(scores, n * R);
        mask(u, scores, 1, R, key, n);
        for (i64 w = 0; w < R; w += L) {
            Vec<A> before = load(most + w), top = before;
            for (i64 j = 0; j < n; ++j) top = larger<A>(top, load(scores + j * R + w));
            Vec<A> base = top == -inf<A> ? Vec<A>{} : top;
            Vec<A> shrink = exponential<A>(before - base), sum = {};
            for (i64 j = 0; j < n; ++j) {
                Vec<A> e = exponential<A>(load(scores + j * R + w) - base);
                store(scores + j * R + w, e);
                sum += e;
            }
            store(most + w, top);
            // Not before the loop: a compiler that peels it would fuse this product with the
            // first sum in one instance of this template and not in another.
            store(weight + w, load(weight + w) * shrink + sum);
            for (i64 d = 0; d < D; ++d) store(out + d * R + w, load(out + d * R + w) * shrink);
        }
        multiply<W>(out, v, 1, D, scores, D, n, true);
    }
    for (i64 row = 0; row < u.num_rows; ++row) {
        for (i64 d = 0; d < D; ++d) k[d] = out[d * R + row];
        finish(u, index, row, k, most[row], weight[row]);
    }
}

}  // namespace
