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
#define SHUFFLE(A, a, b, index) __builtin_shufflevector(a, b, (index)...)
#define SHUFFLE_8(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(A, a, b, index) __builtin_shuffle(a, b, (typename Simd<A>::I){(index)...})
#define SHUFFLE_8(a, b, ...) __builtin_shuffle(a, b, (Simd<float>::I){__VA_ARGS__})
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

template <class A> inline A add_lanes(Vec<A> v) {
    A part[lanes<A>];
    store(part, v);
    for (i64 width = lanes<A> / 2; width; width /= 2)
        for (i64 i = 0; i < width; ++i) part[i] += part[i + width];
    return part[0];
}

// [a0 + a1, a2 + a3, ..., b0 + b1, b2 + b3, ...]
template <class A, int... i>
inline Vec<A> add_neighbours(Vec<A> a, Vec<A> b, std::integer_sequence<int, i...>) {
    return SHUFFLE(A, a, b, 2 * i) + SHUFFLE(A, a, b, 2 * i + 1);
}
// Lane j: the sum of the lanes of v[j], for as many vectors as there are lanes.
template <class A, i64 count = lanes<A>> inline Vec<A> add_lanes_of_each(const Vec<A>* v) {
    if constexpr (count == 1) return v[0];
    else
        return add_neighbours<A>(add_lanes_of_each<A, count / 2>(v),
                                 add_lanes_of_each<A, count / 2>(v + count / 2),
                                 std::make_integer_sequence<int, lanes<A>>{});
}
#if VECTOR_BYTES == 32
// AVX has no single instruction for add_neighbours: it shuffles inside halves of 128 bits. So the
// halves of each vector are summed first, side by side, and joined at the end.
inline Vec<float> add_in_halves(const Vec<float>* v) {
    Vec<float> pair[2];
    for (int i = 0; i < 2; ++i) {
        Vec<float> a = v[2 * i], b = v[2 * i + 1];
        pair[i] = SHUFFLE_8(a, b, 0, 8, 1, 9, 4, 12, 5, 13) +
                  SHUFFLE_8(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
    }
    return SHUFFLE_8(pair[0], pair[1], 0, 1, 8, 9, 4, 5, 12, 13) +
           SHUFFLE_8(pair[0], pair[1], 2, 3, 10, 11, 6, 7, 14, 15);
}
template <> inline Vec<float> add_lanes_of_each<float>(const Vec<float>* v) {
    Vec<float> low = add_in_halves(v), high = add_in_halves(v + 4);
    return SHUFFLE_8(low, high, 0, 1, 2, 3, 8, 9, 10, 11) +
           SHUFFLE_8(low, high, 4, 5, 6, 7, 12, 13, 14, 15);
}
#endif

// ---- products ---------------------------------------------------------------------------------

// out[r * out_stride + j] = dot(w[j], x[r]) for R rows of n and as many j as there are lanes: the
// product for few rows. w is read (and widened) once, where it lies.
template <int R, class T>
inline void dots(const T* const* w, const Sum<T>* x, i64 n, Sum<T>* out, i64 out_stride) {
    typedef Sum<T> A;
    constexpr i64 L = lanes<A>, J = VECTOR_BYTES == 64 || R < 3 ? 4 : 2;  // J * R sums in registers
    Vec<A> sums[R][L];
    for (i64 first = 0; first < L; first += J) {
        Vec<A> some[J][R];
        for (i64 j = 0; j < J; ++j)
            for (int r = 0; r < R; ++r) some[j][r] = Vec<A>{};
        i64 i = 0;
        for (; i + L <= n; i += L) {
            Vec<A> wide[J];
            for (i64 j = 0; j < J; ++j) wide[j] = load(w[first + j] + i);
            for (int r = 0; r < R; ++r) {
                Vec<A> row = load(x + r * n + i);
                for (i64 j = 0; j < J; ++j) some[j][r] += wide[j] * row;
            }
        }
        if (i < n)
            for (i64 j = 0; j < J; ++j)
                for (int r = 0; r < R; ++r)
                    some[j][r] += load(w[first + j] + i, n - i) * load(x + r * n + i, n - i);
        for (i64 j = 0; j < J; ++j)
            for (int r = 0; r < R; ++r) sums[r][first + j] = some[j][r];
    }
    for (int r = 0; r < R; ++r) store(out + r * out_stride, add_lanes_of_each<A>(sums[r]));
}

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
    static Row factor(const Row* from) { return *from; }
    static void add(Vec<Row>& sum, Row factor, Vec<Row> w) { sum += factor * w; }
};
#if defined(__AVX512BF16__)
// Two terms per instruction, multiplied as they are stored and summed in float.
template <> struct Packed<bf16> {
    typedef bf16 Row;
    static constexpr i64 depth = 2;
    static void read(const bf16* from, bf16* to, i64 n) { memcpy(to, from, n * sizeof *to); }
    static __m512bh weights(const bf16* from) { return (__m512bh)_mm512_loadu_si512(from); }
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

// A weight matrix of [out, in] is packed into panels: [out / panel, in / depth, panel, depth], so
// that what one step of the product below reads lies side by side, and a panel's next step behind
// it.
template <class T> constexpr i64 panel = 2 * lanes<Sum<T>>;
// Rows of x per block: with two vectors each, 24 of AVX-512's 32 registers, 12 of 16 elsewhere.
constexpr i64 panel_rows = VECTOR_BYTES == 64 ? 12 : 6;

// y[i, panel p] = x[i] . panel p for M rows and P panels, `in` being whole steps. Every number is
// one sum, in the order of `in`, whatever M and P are: it depends on its own row and its own weights
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
