// Attention of few rows: those of a decode step.
#pragma once
#include <algorithm>

#include "attention.h"
#include "kinds/dense.h"
#include "vectors.h"

namespace {

// Into the second-level cache: the first cannot wait for as many lines at once.
template <class T> inline void Attention<T>::fetch(const T* from, const i64* places, i64 n) const {
    for (i64 j = 0; j < n; ++j)
        for (i64 d = 0; d < D; d += 64 / i64(sizeof(T)))
            __builtin_prefetch(from + places[j] + d, 0, 2);
}

// out = out * shrink + scores @ values for R rows of a head and n keys, at most a vector of
// them; without shrink, it is 1.
template <class T>
template <int R>
inline void Attention<T>::add_values(A* out, const T* values, const i64* places, const A* scores,
                                     const A* shrink, i64 n) const {
    for (i64 d = 0; d < D; d += 2 * L) {
        // Even and odd keys apart: twice the sums in flight.
        Vec<A> sums[2][R][2] = {};
        for (i64 j = 0; j < n; j += 2)
            for (int odd = 0; odd < 2; ++odd) {
                Vec<A> value[2];
                load_two(values + places[j + odd] + d, value);
                for (int row = 0; row < R; ++row)
                    for (int w = 0; w < 2; ++w)
                        sums[odd][row][w] += scores[row * key_tile + j + odd] * value[w];
            }
        for (int row = 0; row < R; ++row)
            for (int w = 0; w < 2; ++w) {
                A* to = out + row * D + d + w * L;
                Vec<A> before = load(to), sum = sums[0][row][w] + sums[1][row][w];
                store(to, shrink ? before * load(shrink + row * L) + sum : before + sum);
            }
    }
}

// Few rows, and a head_dim of whole pairs of vectors: vectors run along head_dim, and keys and
// values are read where they lie, those of the heads side by side.
template <class T>
template <int R>
inline void Attention<T>::few(const Unit& u, i64 index, i64 heads, A* scratch) const {
    const i64 rows = heads * R;  // head after head
    const T *keys = (const T*)c.keys + u.kv_head * c.head_stride;
    const T *values = (const T*)c.values + u.kv_head * c.head_stride;
    // Of each row: its largest score and its factor in all lanes, its sum of weights by lane.
    A *most = scratch, *shrink = most + rows * L, *weight = shrink + rows * L;
    A *out = weight + rows * L, *scores = out + rows * D;
    Row<T>* q = (Row<T>*)(scores + rows * key_tile);
    for (i64 row = 0; row < rows; ++row)
        Dense<T>::read(query(of_head(u, row / R), row % R), q + row * D, D);
    std::fill(most, shrink, -inf<A>);
    std::fill(weight, scores, A(0));
    i64 both[2][key_tile], *places = both[0], *coming = both[1];
    auto find_tile = [&](i64 key, i64* to) {
        i64 n = std::max<i64>(0, std::min(u.end_key - key, key_tile - key % key_tile));
        find(u, key, n, to);
        return n;
    };
    // What is read next is on its way from memory while something else is computed: the values
    // of a tile during its scores, the keys of the next tile during its values.
    i64 n = find_tile(u.first_key, places);
    for (i64 head = 0; head < heads; ++head) fetch(keys + head * c.head_stride, places, n);
    for (i64 key = u.first_key, next; n; key += n, n = next, std::swap(places, coming)) {
        next = find_tile(key + n, coming);
        // Up to whole vectors of keys; what is added is hidden below.
        for (i64 j = n; j % L; ++j) places[j] = places[n - 1];
        for (i64 j = 0; j < n; j += L)
            for (i64 head = 0; head < heads; ++head) {
                i64 start = head * c.head_stride;
                fetch(values + start, places + j, std::min(L, n - j));
                dots<R>(keys + start, places + j, q + head * R * D, D, A(c.scale),
                        scores + head * R * key_tile + j, key_tile);
            }
        if (c.softcap != 0)
            for (i64 row = 0; row < rows; ++row) cap(scores + row * key_tile, n);
        for (i64 head = 0; head < heads; ++head)
            mask(u, scores + head * R * key_tile, key_tile, 1, key, n);
        for (i64 row = 0; row < rows; ++row) {
            A* s = scores + row * key_tile;
            for (i64 j = n; j % L; ++j) s[j] = -inf<A>;
            Vec<A> before = load(most + row * L), top = before, sum = {};
            for (i64 j = 0; j < n; j += L) top = larger<A>(top, load(s + j));
            top = largest_lane<A>(top);
            Vec<A> base = top == -inf<A> ? Vec<A>{} : top;
            for (i64 j = 0; j < n; j += L) {
                Vec<A> e = exponential<A>(load(s + j) - base);
                store(s + j, e);
                sum += e;
            }
            Vec<A> factor = exponential<A>(before - base);
            store(most + row * L, top);
            store(shrink + row * L, factor);
            store(weight + row * L, load(weight + row * L) * factor + sum);
        }
        for (i64 j = 0; j < n; j += L)
            for (i64 row = 0; row < rows; row += R) {
                fetch(keys + row / R * c.head_stride, coming + j, std::min(L, next - j));
                add_values<R>(out + row * D, values + row / R * c.head_stride, places + j,
                              scores + row * key_tile + j, j ? nullptr : shrink + row * L,
                              std::min(L, n - j));
            }
    }
    for (i64 row = 0; row < rows; ++row) {
        in_order<T>(out + row * D, D);
        finish(of_head(u, row / R), index + row / R, row % R, out + row * D, most[row * L],
               add_lanes<A>(load(weight + row * L)));
    }
}

}  // namespace
