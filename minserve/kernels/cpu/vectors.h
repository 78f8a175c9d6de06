// Arithmetic on vectors of the machine's width, for ops.cpp: loads that widen bfloat16, an
// exponential, sums across lanes, and the two small products everything large is made of.
//
// GCC's vector extension, which clang has too. Numbers are stored as T and computed as Sum<T>.
#pragma once
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#if defined(__AVX512F__)
#include <immintrin.h>
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

// The chosen lanes of two vectors; clang and newer GCC spell it one way, older GCC another.
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, (__VA_ARGS__)...)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Simd<float>::I){(__VA_ARGS__)...})
#endif

namespace {

typedef int64_t i64;
struct bf16 {
    uint16_t bits;
};

template <class A> struct Simd;
template <> struct Simd<float> {
    typedef float V __attribute__((vector_size(VECTOR_BYTES)));
    typedef int32_t I __attribute__((vector_size(VECTOR_BYTES)));
    static constexpr int mantissa = 23, bias = 127, terms = 8;
    static constexpr float shift = 12582912.0f, lowest = -87.0f;
    static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
};
template <> struct Simd<double> {
    typedef double V __attribute__((vector_size(VECTOR_BYTES)));
    typedef int64_t I __attribute__((vector_size(VECTOR_BYTES)));
    static constexpr int mantissa = 52, bias = 1023, terms = 14;
    static constexpr double shift = 6755399441055744.0, lowest = -708.0;
    static constexpr double ln2_high = 6.93145751953125e-1, ln2_low = 1.42860682030941723212e-6;
};
template <class T> struct SumOf { typedef T type; };
template <> struct SumOf<bf16> { typedef float type; };

template <class T> using Sum = typename SumOf<T>::type;
template <class A> using Vec = typename Simd<A>::V;
template <class A> constexpr i64 lanes = VECTOR_BYTES / sizeof(A);
template <class A> constexpr A inf = std::numeric_limits<A>::infinity();

// ---- memory -----------------------------------------------------------------------------------

template <class A> inline Vec<A> load(const A* from) {
    Vec<A> v;
    memcpy(&v, from, sizeof v);
    return v;
}
template <class A> inline void store(A* to, Vec<A> v) { memcpy(to, &v, sizeof v); }

typedef uint16_t Half16 __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef uint32_t Bits32 __attribute__((vector_size(VECTOR_BYTES)));
inline Vec<float> load(const bf16* from) {
    Half16 half;
    memcpy(&half, from, sizeof half);
#if defined(__AVX512F__)
    // GCC's own conversion goes by halves of the vector, and takes twice as long.
    return (Vec<float>)((Bits32)_mm512_cvtepu16_epi32((__m256i)half) << 16);
#else
    return (Vec<float>)(__builtin_convertvector(half, Bits32) << 16);
#endif
}
inline void store(bf16* to, Vec<float> v) {
    // Round to nearest, ties to even; a NaN keeps its sign and stays one.
    Bits32 bits = (Bits32)v, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    Half16 half = __builtin_convertvector(v == v ? rounded : (bits >> 16) | 0x40, Half16);
    memcpy(to, &half, sizeof half);
}

// The first n lanes; the others are zero, and memory past n is neither read nor written.
template <class T> inline Vec<Sum<T>> load(const T* from, i64 n) {
    if (n >= lanes<Sum<T>>) return load(from);
    T part[lanes<Sum<T>>] = {};
    memcpy(part, from, n * sizeof(T));
    return load(part);
}
template <class T> inline void store(T* to, Vec<Sum<T>> v, i64 n) {
    if (n >= lanes<Sum<T>>) return store(to, v);
    T part[lanes<Sum<T>>];
    store(part, v);
    memcpy(to, part, n * sizeof(T));
}

// Two vectors of numbers that lie side by side, in whatever order costs least; in_order() gives n
// sums of such numbers their own order back.
template <class A> inline void load_two(const A* from, Vec<A>* two) {
    two[0] = load(from), two[1] = load(from + lanes<A>);
}
inline void load_two(const bf16* from, Vec<float>* two) {
    Bits32 pairs;
    memcpy(&pairs, from, sizeof pairs);
    two[0] = (Vec<float>)(pairs << 16), two[1] = (Vec<float>)(pairs & 0xffff0000u);
}
template <class T> inline void in_order(Sum<T>* sums, i64 n) {
    constexpr i64 L = lanes<Sum<T>>;
    if (sizeof(T) == sizeof(Sum<T>)) return;
    for (i64 i = 0; i < n; i += 2 * L) {
        Sum<T> even[L];
        memcpy(even, sums + i, sizeof even);
        // Each goes to the left of where the next odd one is read.
        for (i64 j = 0; j < L; ++j) {
            Sum<T> odd = sums[i + L + j];
            sums[i + 2 * j] = even[j], sums[i + 2 * j + 1] = odd;
        }
    }
}

template <class T> inline void widen(const T* from, Sum<T>* to, i64 n) {
    for (i64 i = 0; i < n; i += lanes<Sum<T>>) store(to + i, load(from + i, n - i), n - i);
}

// ---- functions --------------------------------------------------------------------------------

template <class A> inline Vec<A> larger(Vec<A> a, Vec<A> b) { return a > b ? a : b; }

// e^x for x up to about 1: 2^n times a Taylor series on |r| <= ln(2) / 2. Within two units in the
// last place; exactly 0 below `lowest`, -inf included; NaN stays NaN.
template <class A> inline Vec<A> exponential(Vec<A> x) {
    typedef Simd<A> S;
    constexpr A inverse_factorials[] = {
        1, 1, A(1. / 2), A(1. / 6), A(1. / 24), A(1. / 120), A(1. / 720), A(1. / 5040),
        A(1. / 40320), A(1. / 362880), A(1. / 3628800), A(1. / 39916800), A(1. / 479001600),
        A(1. / 6227020800)};
    // Adding 1.5 * 2^mantissa rounds to an integer and leaves it in the low bits.
    Vec<A> shifted = x * A(1.44269504088896340736) + S::shift, n = shifted - S::shift;
    Vec<A> r = x - n * S::ln2_high - n * S::ln2_low;
    Vec<A> series = Vec<A>{} + inverse_factorials[S::terms - 1];
    for (int k = S::terms - 2; k >= 0; --k) series = series * r + inverse_factorials[k];
    typename S::I exponent = (typename S::I)shifted + S::bias;
    return x < S::lowest ? Vec<A>{} : series * (Vec<A>)(exponent << S::mantissa);
}

// Lanes `step` places further on.
template <int step, class V, int... i>
inline V turned(V v, std::integer_sequence<int, i...>) {
    return SHUFFLE(v, v, (i + step) % int(sizeof...(i)));
}
// Sums of float lanes go by quarters of 128 bits, inside which processors shuffle fastest.
// In each quarter: the sums of neighbours, a0 + a1, a2 + a3, b0 + b1, b2 + b3.
template <int... i>
inline Vec<float> add_pairs(Vec<float> a, Vec<float> b, std::integer_sequence<int, i...>) {
    constexpr int L = lanes<float>;
    return SHUFFLE(a, b, i / 4 * 4 + i % 2 * 2 + i / 2 % 2 * L) +
           SHUFFLE(a, b, i / 4 * 4 + i % 2 * 2 + i / 2 % 2 * L + 1);
}
// The sums of neighbouring quarters, those of a, then those of b.
template <int... i>
inline Vec<float> add_quarters(Vec<float> a, Vec<float> b, std::integer_sequence<int, i...>) {
    return SHUFFLE(a, b, i / 4 * 8 + i % 4) + SHUFFLE(a, b, i / 4 * 8 + i % 4 + 4);
}

template <class A> inline A add_lanes(Vec<A> v) {
    A part[lanes<A>];
    store(part, v);
    for (i64 width = lanes<A> / 2; width; width /= 2)
        for (i64 i = 0; i < width; ++i) part[i] += part[i + width];
    return part[0];
}

// The largest number, in all lanes.
template <class A, i64 step = lanes<A> / 2> inline Vec<A> largest_lane(Vec<A> v) {
    if constexpr (step == 0) return v;
    else
        return largest_lane<A, step / 2>(
            larger<A>(v, turned<step>(v, std::make_integer_sequence<int, lanes<A>>{})));
}

// Four vectors -> in each quarter, the sums over that quarter of a, b, c, d.
inline Vec<float> add_in_quarters(Vec<float> a, Vec<float> b, Vec<float> c, Vec<float> d) {
    constexpr auto all = std::make_integer_sequence<int, lanes<float>>{};
    return add_pairs(add_pairs(a, b, all), add_pairs(c, d, all), all);
}
// `count` vectors of four sums in each quarter -> the whole sums, side by side.
template <i64 count = lanes<float> / 4> inline Vec<float> join_quarters(const Vec<float>* v) {
    if constexpr (count == 1) return v[0];
    else
        return add_quarters(join_quarters<count / 2>(v), join_quarters<count / 2>(v + count / 2),
                            std::make_integer_sequence<int, lanes<float>>{});
}

// ---- products ---------------------------------------------------------------------------------

// Rows of c, of W vectors, become (or grow by) a times b, for m rows and n terms: the product for
// many rows, near the machine's peak. a[i * ai + k * ak] is one number; rows of b are W vectors.
template <int M, int W, class A>
inline void multiply_rows(A* c, const A* a, i64 ai, i64 ak, const A* b, i64 n, bool add) {
    Vec<A> sums[M][W] = {};
    for (i64 k = 0; k < n; ++k)
        for (int i = 0; i < M; ++i)
            for (int w = 0; w < W; ++w)
                sums[i][w] += a[i * ai + k * ak] * load(b + (k * W + w) * lanes<A>);
    for (int i = 0; i < M; ++i)
        for (int w = 0; w < W; ++w) {
            A* to = c + (i * W + w) * lanes<A>;
            store(to, add ? load(to) + sums[i][w] : sums[i][w]);
        }
}
// Sums held in registers: 16 of AVX-512's 32 registers, 8 of the 16 elsewhere.
constexpr int most_vectors = VECTOR_BYTES == 64 ? 4 : 2;
template <int W> constexpr i64 block_rows = VECTOR_BYTES == 64 && W < 4 ? 8 : 4;
template <int W, class A>
void multiply(A* c, const A* a, i64 ai, i64 ak, const A* b, i64 m, i64 n, bool add) {
    constexpr i64 M = block_rows<W>, width = W * lanes<A>;
    i64 i = 0;
    for (; i + M <= m; i += M) multiply_rows<M, W>(c + i * width, a + i * ai, ai, ak, b, n, add);
    for (; i < m; ++i) multiply_rows<1, W>(c + i * width, a + i * ai, ai, ak, b, n, add);
}

// ---- products with packed weights -------------------------------------------------------------

// How numbers are multiplied with packed weights: rows of x are read as Row, and `depth` terms that
// lie side by side make one step.
template <class T> struct Packed {
    typedef Sum<T> Row;
    static constexpr i64 depth = 1;
    static void read(const T* from, Row* to, i64 n) { widen(from, to, n); }
    static Vec<Row> weights(const T* from) { return load(from); }
    static Vec<Row> row(const Row* from) { return load(from); }
    static Row factor(const Row* from) { return *from; }
    template <class F> static void add(Vec<Row>& sum, F factor, Vec<Row> w) { sum += factor * w; }
};
#if defined(__AVX512BF16__)
// Two terms per instruction, multiplied as they are stored and summed in float.
template <> struct Packed<bf16> {
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
};
#endif
template <class T> using Row = typename Packed<T>::Row;

// out[r * out_stride + j] = dot(w + places[j], x[r]) * scale for R rows of n and as many j as there
// are lanes: the product for few rows. w is read once, where it lies.
template <int R, class T>
inline void dots(const T* w, const i64* places, const Row<T>* x, i64 n, float scale, float* out,
                 i64 out_stride) {
    typedef Packed<T> Step;
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

// A weight matrix of [out, in] is packed into panels: [out / panel, in / depth, panel, depth], so
// that what one step of the product below reads lies side by side, and a panel's next step behind
// it.
template <class T> constexpr i64 panel = 2 * lanes<Sum<T>>;
// Rows of x per block: with two vectors each, 24 of AVX-512's 32 registers, 12 of 16 elsewhere.
constexpr i64 panel_rows = VECTOR_BYTES == 64 ? 12 : 6;

// y[i, panel p] = x[i] . panel p for M rows and P panels, `in` being whole steps. Every number is
// one sum, in the order of `in`, whatever M and P are: it depends on its own row and weights
// alone.
template <int M, int P, class T>
inline void panel_block(const Row<T>* x, i64 x_stride, i64 in, const T* w, Sum<T>* y,
                        i64 y_stride) {
    typedef Sum<T> A;
    typedef Packed<T> Step;
    constexpr i64 L = lanes<A>, side = L * Step::depth;
    Vec<A> sums[M][P][2] = {};
    for (i64 k = 0; k < in; k += Step::depth)
        for (int p = 0; p < P; ++p) {
            const T* from = w + (p * in + k) * 2 * L;
            // Narrow weights for few rows pass by faster than the hardware notices where each panel
            // begins: what comes after these panels is asked for meanwhile. Wide ones it follows.
            if (P > 1 && sizeof(T) < sizeof(A))
                for (i64 line = 0; line < 2 * side; line += 64 / i64(sizeof(T)))
                    __builtin_prefetch(from + P * in * 2 * L + line);
            auto left = Step::weights(from), right = Step::weights(from + side);
            for (int i = 0; i < M; ++i) {
                auto factor = Step::factor(x + i * x_stride + k);
                Step::add(sums[i][p][0], factor, left);
                Step::add(sums[i][p][1], factor, right);
            }
        }
    for (int i = 0; i < M; ++i)
        for (int p = 0; p < P; ++p)
            for (int half = 0; half < 2; ++half)
                store(y + i * y_stride + (p * 2 + half) * L, sums[i][p][half]);
}

// The same for up to panel_rows rows.
template <int P, class T, int M = P == 1 ? panel_rows : panel_rows / P>
inline void panel_block(i64 rows, const Row<T>* x, i64 x_stride, i64 in, const T* w, Sum<T>* y,
                        i64 y_stride) {
    if constexpr (M > 1)
        if (rows < M) return panel_block<P, T, M - 1>(rows, x, x_stride, in, w, y, y_stride);
    panel_block<M, P>(x, x_stride, in, w, y, y_stride);
}

}  // namespace
