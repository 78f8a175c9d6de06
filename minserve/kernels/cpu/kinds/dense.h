// Dense weights, stored as the numbers that they are: one trait of products.h, and the product for
// few rows with numbers that lie anywhere.
#pragma once
#include <algorithm>
#include <vector>

#include "../matrix.h"
#include "../vectors.h"

namespace {

// How numbers of type T are multiplied with weights of this kind: codes of a panel are loaded as a
// vector, rows of x are read as Row, and `depth` terms that lie side by side make one step.
template <class T> struct Dense {
    typedef T Number;
    typedef T Code;
    typedef Sum<T> Row;
    static constexpr i64 depth = 1;
    static void read(const T* from, Row* to, i64 n) { widen(from, to, n); }
    static Vec<Row> weights(const T* from) { return load(from); }
    static Vec<Row> row(const Row* from) { return load(from); }
    static Row factor(const Row* from) { return *from; }
    template <class F> static void add(Vec<Row>& sum, F factor, Vec<Row> w) { sum += factor * w; }
    // What the sums of outputs `output` and following, of which n are wanted, stand for.
    static Vec<Row> finish(Vec<Row> sum, const Matrix&, i64, i64) { return sum; }
};
#if defined(__AVX512BF16__)
// Two terms per instruction, multiplied as they are stored and summed in float.
template <> struct Dense<bf16> {
    typedef bf16 Number;
    typedef bf16 Code;
    typedef bf16 Row;
    static constexpr i64 depth = 2;
    static void read(const bf16* from, bf16* to, i64 n) { memcpy(to, from, n * sizeof *to); }
    static __m512bh weights(const bf16* from) { return (__m512bh)_mm512_loadu_si512(from); }
    static __m512bh row(const bf16* from) { return weights(from); }
    static __m512bh factor(const bf16* from) {
        int32_t pair;
        memcpy(&pair, from, sizeof pair);
        return (__m512bh)_mm512_set1_epi32(pair);
    }
    static void add(Vec<float>& sum, __m512bh factor, __m512bh w) {
        sum = (Vec<float>)_mm512_dpbf16_ps((__m512)sum, factor, w);
    }
    static Vec<float> finish(Vec<float> sum, const Matrix&, i64, i64) { return sum; }
};
#endif
template <class T> using Row = typename Dense<T>::Row;

// out[r * out_stride + j] = dot(w + places[j], x[r]) * scale for R rows of n and as many j as there
// are lanes: the product for few rows. w is read once, where it lies.
template <int R, class T>
inline void dots(const T* w, const i64* places, const Row<T>* x, i64 n, float scale, float* out,
                 i64 out_stride) {
    typedef Dense<T> Step;
    constexpr i64 quarters = lanes<float> / 4, span = lanes<float> * Step::depth;
    Vec<float> sums[R][quarters];
    for (i64 four = 0; four < quarters; ++four) {
        Vec<float> some[4][R] = {};
        auto step = [&](const T* const* from, const Row<T>* at, i64 stride) {
            decltype(Step::weights(w)) wide[4];
            for (i64 j = 0; j < 4; ++j) wide[j] = Step::weights(from[j]);
            for (int r = 0; r < R; ++r) {
                auto row = Step::row(at + r * stride);
                for (i64 j = 0; j < 4; ++j) Step::add(some[j][r], row, wide[j]);
            }
        };
        const T* from[4];
        for (i64 j = 0; j < 4; ++j) from[j] = w + places[4 * four + j];
        i64 i = 0;
        for (; i + span <= n; i += span) {
            step(from, x + i, n);
            for (i64 j = 0; j < 4; ++j) from[j] += span;
        }
        if (i < n) {  // the same with zeros behind
            T last[4][span] = {};
            Row<T> rows[R][span] = {};
            for (i64 j = 0; j < 4; ++j) {
                memcpy(last[j], from[j], (n - i) * sizeof(T));
                from[j] = last[j];
            }
            for (int r = 0; r < R; ++r) memcpy(rows[r], x + r * n + i, (n - i) * sizeof(Row<T>));
            step(from, rows[0], span);
        }
        for (int r = 0; r < R; ++r)
            sums[r][four] = add_in_quarters(some[0][r], some[1][r], some[2][r], some[3][r]);
    }
    for (int r = 0; r < R; ++r) store(out + r * out_stride, join_quarters(sums[r]) * scale);
}

// y = x @ w.T + bias for at most 4 rows and weights that are not packed, a vector of outputs at a
// time.
template <int R>
void few_rows_linear(const bf16* x, const bf16* w, const bf16* bias, bf16* y, i64 in, i64 out,
                     i64 x_stride, int threads) {
    constexpr i64 L = lanes<float>;
    static thread_local std::vector<Row<bf16>> scratch;
    scratch.resize(R * in);
    Row<bf16>* rows_x = scratch.data();
    for (i64 row = 0; row < R; ++row)
        Dense<bf16>::read(x + row * x_stride, rows_x + row * in, in);
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (i64 o = 0; o < out; o += L) {
        i64 places[L];
        for (i64 j = 0; j < L; ++j) places[j] = std::min(o + j, out - 1) * in;
        Vec<float> add = bias ? load(bias + o, out - o) : Vec<float>{};
        float sums[R * L];
        dots<R>(w, places, rows_x, in, 1.0f, sums, L);
        for (i64 r = 0; r < R; ++r) store(y + r * out + o, load(sums + r * L) + add, out - o);
    }
}

}  // namespace
