// The operators that work row by row: norms, gates, rotation, and storing into pages.
#pragma once
#include <cmath>

#include "vectors.h"

namespace {

// to = from / sqrt(mean(from^2) + eps) * weight.
template <class T> void normalise(const T* from, const T* weight, T* to, i64 n, double eps) {
    typedef Sum<T> A;
    constexpr i64 L = lanes<A>;
    Vec<A> squares[2] = {};  // two chains of sums: each waits for its own last one only
    for (i64 i = 0; i < n; i += L) {
        Vec<A> v = load(from + i, n - i);
        squares[i / L % 2] += v * v;
    }
    A inverse = A(1) / std::sqrt(add_lanes<A>(squares[0] + squares[1]) / A(n) + A(eps));
    for (i64 i = 0; i < n; i += L)
        store(to + i, load(from + i, n - i) * inverse * load(weight + i, n - i), n - i);
}

// With a residual of [rows, n], x is first added into it, and the sum is what is normalised.
template <class T>
void rms_norm(const T* x, T* residual, const T* weight, T* out, i64 rows, i64 heads, i64 n,
              i64 row_stride, i64 head_stride, double eps, int threads) {
    constexpr i64 L = lanes<Sum<T>>;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (i64 row = 0; row < rows * heads; ++row) {
        const T* from = x + row / heads * row_stride + row % heads * head_stride;
        if (residual) {
            T* stream = residual + row * n;
            for (i64 i = 0; i < n; i += L)
                store(stream + i, load(stream + i, n - i) + load(from + i, n - i), n - i);
            from = stream;
        }
        normalise(from, weight, out + row * n, n, eps);
    }
}

// activation(gate) * up of rows of [2 * inner], the gate first.
template <class T>
void gate_and_mul(i64 activation, const T* gate_up, T* out, i64 rows, i64 inner, i64 row_stride,
                  int threads) {
    typedef Sum<T> A;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (i64 row = 0; row < rows; ++row) {
        const T* gate = gate_up + row * row_stride;
        for (i64 i = 0; i < inner; i += lanes<A>) {
            i64 n = inner - i;
            Vec<A> bent = gated<A>(activation, load(gate + i, n), load(gate + inner + i, n));
            store(out + row * inner + i, bent, n);
        }
    }
}

// Half the rotated numbers of a head and where they go; `from` and `to` may be the same head.
template <class T>
void rotate(const T* from, T* to, const Sum<T>* angles, i64 half) {
    typedef Sum<T> A;
    for (i64 i = 0; i < half; i += lanes<A>) {
        i64 n = half - i;
        Vec<A> cosine = load(angles + i, n), sine = load(angles + half + i, n);
        Vec<A> a = load(from + i, n), b = load(from + half + i, n);
        store(to + i, a * cosine - b * sine, n);
        store(to + half + i, b * cosine + a * sine, n);
    }
}

template <class T>
void rotary(T* x, const i64* positions, const Sum<T>* cos_sin, i64 rows, i64 heads, i64 head_dim,
            i64 row_stride, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (i64 row = 0; row < rows; ++row)
        for (i64 head = 0; head < heads; ++head) {
            T* at = x + row * row_stride + head * head_dim;
            rotate(at, at, cos_sin + positions[row] * head_dim, head_dim / 2);
        }
}

// Queries of [rows, heads + 2 * kv_heads, head_dim] are rotated where they lie; keys are rotated on
// their way into their slots, and values copied. With norms, both are normalised first.
template <class T>
void rotary_store(T* qkv, const i64* positions, const Sum<T>* cos_sin, T* keys, T* values,
                  const i64* slots, const T* q_norm, const T* k_norm, i64 rows, i64 heads,
                  i64 kv_heads, i64 head_dim, i64 row_stride, i64 block_size, i64 block_stride,
                  i64 head_stride, double eps, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (i64 row = 0; row < rows; ++row) {
        const Sum<T>* angles = cos_sin + positions[row] * head_dim;
        T* at = qkv + row * row_stride;
        for (i64 head = 0; head < heads; ++head, at += head_dim) {
            if (q_norm) normalise(at, q_norm, at, head_dim, eps);
            rotate(at, at, angles, head_dim / 2);
        }
        i64 to = slots[row] / block_size * block_stride + slots[row] % block_size * head_dim;
        for (i64 head = 0; head < kv_heads; ++head, at += head_dim, to += head_stride) {
            if (k_norm) normalise(at, k_norm, at, head_dim, eps);
            rotate(at, keys + to, angles, head_dim / 2);
            memcpy(values + to, at + kv_heads * head_dim, head_dim * sizeof(T));
        }
    }
}

// Copy rows of [heads, row_bytes] into their slots of [blocks, heads, block_size, row_bytes].
inline void store_rows(const char* k, const char* v, char* keys, char* values, const i64* slots,
                       i64 rows, i64 heads, i64 row_bytes, i64 k_stride_bytes, i64 v_stride_bytes,
                       i64 block_size, i64 block_stride_bytes, i64 head_stride_bytes,
                       int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (i64 row = 0; row < rows; ++row) {
        i64 block = slots[row] / block_size, offset = slots[row] % block_size;
        i64 at = block * block_stride_bytes + offset * row_bytes;
        for (i64 head = 0; head < heads; ++head, at += head_stride_bytes) {
            memcpy(keys + at, k + row * k_stride_bytes + head * row_bytes, row_bytes);
            memcpy(values + at, v + row * v_stride_bytes + head * row_bytes, row_bytes);
        }
    }
}

}  // namespace
