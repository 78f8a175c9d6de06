// Products with weights in panels (matrix.h) of any kind (kinds/).
#pragma once
#include <algorithm>
#include <vector>

#include "kinds/dense.h"
#include "kinds/int8.h"
#include "matrix.h"
#include "vectors.h"

namespace {

// Rows of x per block: with two vectors each, 24 of AVX-512's 32 registers, 12 of 16 elsewhere.
constexpr i64 panel_rows = VECTOR_BYTES == 64 ? 12 : 6;

// y[i, panel p] = x[i] . panel p for M rows and P panels, `in` being whole steps. Every number is
// one sum, in the order of `in`, whatever M and P are: it depends on its own row and weights
// alone.
template <int M, int P, class K>
inline void panel_block(const typename K::Row* x, i64 x_stride, i64 in,
                        const typename K::Code* w, Sum<typename K::Number>* y, i64 y_stride) {
    typedef Sum<typename K::Number> A;
    constexpr i64 L = lanes<A>, side = L * K::depth, code = sizeof(typename K::Code);
    Vec<A> sums[M][P][2] = {};
    for (i64 k = 0; k < in; k += K::depth)
        for (int p = 0; p < P; ++p) {
            const typename K::Code* from = w + (p * in + k) * 2 * L;
            // Narrow weights for few rows pass by faster than the hardware notices where each panel
            // begins: what comes after these panels is asked for meanwhile. Wide ones it follows.
            if (P > 1 && code < i64(sizeof(A)))
                for (i64 line = 0; line < 2 * side; line += 64 / code)
                    __builtin_prefetch(from + P * in * 2 * L + line);
            auto left = K::weights(from), right = K::weights(from + side);
            for (int i = 0; i < M; ++i) {
                auto factor = K::factor(x + i * x_stride + k);
                K::add(sums[i][p][0], factor, left);
                K::add(sums[i][p][1], factor, right);
            }
        }
    for (int i = 0; i < M; ++i)
        for (int p = 0; p < P; ++p)
            for (int half = 0; half < 2; ++half)
                store(y + i * y_stride + (p * 2 + half) * L, sums[i][p][half]);
}

// The same for up to panel_rows rows.
template <int P, class K, int M = P == 1 ? panel_rows : panel_rows / P>
inline void panel_block(i64 rows, const typename K::Row* x, i64 x_stride, i64 in,
                        const typename K::Code* w, Sum<typename K::Number>* y, i64 y_stride) {
    if constexpr (M > 1)
        if (rows < M) return panel_block<P, K, M - 1>(rows, x, x_stride, in, w, y, y_stride);
    panel_block<M, P, K>(x, x_stride, in, w, y, y_stride);
}

// Sums of a block: of one panel and panel_rows rows, or of more panels and as many rows fewer.
template <class A> using Block = A[panel_rows * 2 * lanes<A>];

// Stores what the sums of n rows and `span` outputs, from `first` on, stand for, up to the last of
// `out` outputs. Gated: sums[1] belongs to the second half of the outputs.
template <class K, bool gate, class A = Sum<typename K::Number>>
inline void finish_block(const Matrix& m, i64 activation, const Block<A>* sums,
                         typename K::Number* y, i64 n, i64 span, i64 first, i64 out) {
    constexpr i64 L = lanes<A>;
    const typename K::Number* bias = (const typename K::Number*)m.bias;
    for (i64 i = 0; i < n; ++i)
        for (i64 o = first, j = i * span; o < first + span && o < out; o += L, j += L) {
            Vec<A> sum = K::finish(load(sums[0] + j), m, o, out - o);
            if (gate) {
                Vec<A> up = K::finish(load(sums[1] + j), m, out + o, out - o);
                sum = gated<A>(activation, sum, up);
            } else if (bias) {
                sum += load(bias + o, out - o);
            }
            store(y + i * out + o, sum, out - o);
        }
}

// y = x @ weights.T + bias. Gated: the first half of the outputs, in whole panels, is the gate, and
// y = activation(gate) * second half, without bias: what lies between never leaves the cache.
template <class K, bool gate>
void multiply_panels(const typename K::Number* x, const Matrix& m, typename K::Number* y, i64 rows,
                     i64 x_stride, i64 activation, int threads) {
    typedef typename K::Number T;
    typedef typename K::Code Code;
    typedef typename K::Row Row;
    typedef Sum<T> A;
    constexpr i64 width = panel<T>, most = 4;  // panels at once, for few rows
    const i64 in = m.inputs, out = gate ? m.outputs / 2 : m.outputs;
    const i64 terms = (in + K::depth - 1) / K::depth * K::depth, size = width * terms;
    // Read where they lie, or a copy: widened, or filled up to whole steps.
    static thread_local std::vector<Row> scratch;
    const Row* rows_x = (const Row*)x;
    if (sizeof(T) != sizeof(Row) || terms != in) {
        scratch.assign(rows * terms, {});
        for (i64 row = 0; row < rows; ++row)
            K::read(x + row * x_stride, scratch.data() + row * terms, in);
        rows_x = scratch.data(), x_stride = terms;
    }
    // Few rows would leave most of a processor waiting for its own sums: they take more panels.
    i64 panels = (out + width - 1) / width, together = rows * most <= panel_rows ? most
                                                       : rows * 2 <= panel_rows ? 2 : 1;
    // Rows that stay in the cache while all panels pass.
    i64 chunk = std::max(16 * panel_rows, (1 << 16) / (terms + 1) / panel_rows * panel_rows);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (i64 part = 0; part < threads; ++part)
        for (i64 start = 0; start < rows; start += chunk) {
            i64 end = std::min(rows, start + chunk), blocks = (end - start - 1) / panel_rows + 1;
            i64 p = panels * part / threads, stop = panels * (part + 1) / threads;
            for (i64 count; p < stop; p += count) {
                count = stop - p >= together ? together : 1;
                const Code* from = (const Code*)m.codes + p * size;
                i64 span = count * width;
                // Blocks of nearly equal size: 7 rows are 4 and 3, not 6 and 1.
                for (i64 block = 0, row = start, n; block < blocks; ++block, row += n) {
                    n = (end - row + blocks - block - 1) / (blocks - block);
                    Block<A> sums[2];
                    auto multiply = [&](const Code* w, A* to) {
                        const Row* at = rows_x + row * x_stride;
                        if (count == 4) panel_block<4, K>(n, at, x_stride, terms, w, to, span);
                        else if (count == 2) panel_block<2, K>(n, at, x_stride, terms, w, to, span);
                        else panel_block<1, K>(n, at, x_stride, terms, w, to, span);
                    };
                    multiply(from, sums[0]);
                    if (gate) multiply(from + panels * size, sums[1]);
                    finish_block<K, gate>(m, activation, sums, y + row * out, n, span, p * width,
                                             out);
                }
            }
        }
}

// Not inlined, so that every caller gets the same bits.
template <class T>
__attribute__((noinline)) void linear(const T* x, const Matrix& m, T* y, i64 rows, i64 x_stride,
                                      int threads) {
    auto multiply = m.kind == int8 ? multiply_panels<Int8<T>, false>
                                   : multiply_panels<Dense<T>, false>;
    multiply(x, m, y, rows, x_stride, 0, threads);
}

template <class T>
__attribute__((noinline)) void gated_linear(const T* x, const Matrix& m, T* y, i64 rows,
                                            i64 x_stride, i64 activation, int threads) {
    auto multiply = m.kind == int8 ? multiply_panels<Int8<T>, true>
                                   : multiply_panels<Dense<T>, true>;
    multiply(x, m, y, rows, x_stride, activation, threads);
}

}  // namespace
