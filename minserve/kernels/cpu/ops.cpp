// The operators of minserve/kernels/base.py for float, double and bfloat16 on a CPU: a plain C ABI
// for ctypes.
//
// No torch headers, so that it compiles in seconds. No fast-math: -inf and NaN mean what they say.
// Strides are in elements unless a name says bytes.
#include <atomic>

#include "attention.h"
#include "attention_few.h"
#include "attention_many.h"
#include "kinds/dense.h"
#include "layers.h"
#include "products.h"
#include "rows.h"

#define EXPORT extern "C" __attribute__((visibility("default"))) void
#define FOR_TYPE(T, name)                                                                         \
    EXPORT rms_norm_##name(const T* x, T* residual, const T* weight, T* out, i64 rows, i64 heads, \
                           i64 n, i64 row_stride, i64 head_stride, double eps, int threads) {     \
        rms_norm(x, residual, weight, out, rows, heads, n, row_stride, head_stride, eps, threads); \
    }                                                                                             \
    EXPORT silu_and_mul_##name(const T* x, T* out, i64 rows, i64 inner, i64 stride, int threads) { \
        gate_and_mul(silu, x, out, rows, inner, stride, threads);                                 \
    }                                                                                             \
    EXPORT gelu_and_mul_##name(const T* x, T* out, i64 rows, i64 inner, i64 stride, int threads) { \
        gate_and_mul(gelu_tanh, x, out, rows, inner, stride, threads);                            \
    }                                                                                             \
    EXPORT rotary_##name(T* x, const i64* positions, const Sum<T>* cos_sin, i64 rows, i64 heads,  \
                         i64 head_dim, i64 row_stride, int threads) {                             \
        rotary(x, positions, cos_sin, rows, heads, head_dim, row_stride, threads);                \
    }                                                                                             \
    EXPORT rotary_store_##name(                                                                   \
        T* qkv, const i64* positions, const Sum<T>* cos_sin, T* keys, T* values,                  \
        const i64* slots, const T* q_norm, const T* k_norm, i64 rows, i64 heads, i64 kv_heads,    \
        i64 head_dim, i64 row_stride, i64 block_size, i64 block_stride, i64 head_stride,          \
        double eps, int threads) {                                                                \
        rotary_store(qkv, positions, cos_sin, keys, values, slots, q_norm, k_norm, rows, heads,   \
                     kv_heads, head_dim, row_stride, block_size, block_stride, head_stride, eps,  \
                     threads);                                                                    \
    }                                                                                             \
    EXPORT linear_##name(const T* x, const Matrix* m, T* y, i64 rows, i64 x_stride, int threads) { \
        linear(x, *m, y, rows, x_stride, threads);                                                \
    }                                                                                             \
    EXPORT gated_linear_##name(const T* x, const Matrix* m, T* y, i64 rows, i64 x_stride,         \
                               i64 activation, int threads) {                                     \
        gated_linear(x, *m, y, rows, x_stride, activation, threads);                              \
    }                                                                                             \
    EXPORT packing_##name(i64 kind, i64* width, i64* depth) {                                     \
        *width = panel<T>, *depth = kind == int8 ? Int8<T>::depth : Dense<T>::depth;              \
    }                                                                                             \
    EXPORT attention_##name(const AttentionCall* call) { Attention<T>{*call}.run(); }             \
    EXPORT layers_##name(LayersCall* call) { Layers<T>{*call}.run(); }

FOR_TYPE(float, float32)
FOR_TYPE(double, float64)
FOR_TYPE(bf16, bfloat16)

EXPORT few_rows_linear_bfloat16(const bf16* x, const bf16* w, const bf16* bias, bf16* y, i64 rows,
                                i64 in, i64 out, i64 x_stride, int threads) {
    auto linear = rows == 4 ? few_rows_linear<4> : rows == 3 ? few_rows_linear<3>
                : rows == 2 ? few_rows_linear<2> : few_rows_linear<1>;
    linear(x, w, bias, y, in, out, x_stride, threads);
}

EXPORT store_kv(const char* k, const char* v, char* keys, char* values, const i64* slots, i64 rows,
                i64 heads, i64 row_bytes, i64 k_stride_bytes, i64 v_stride_bytes, i64 block_size,
                i64 block_stride_bytes, i64 head_stride_bytes, int threads) {
    store_rows(k, v, keys, values, slots, rows, heads, row_bytes, k_stride_bytes, v_stride_bytes,
               block_size, block_stride_bytes, head_stride_bytes, threads);
}

// Give the calling thread a team of its own, which waits until the thread ends: see spinning.py.
EXPORT open_team(int threads) {
    static std::atomic<int> met;
#pragma omp parallel num_threads(threads)
    ++met;  // an empty region would be dropped
}
