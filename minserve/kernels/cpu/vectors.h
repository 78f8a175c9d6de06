// Arithmetic on vectors of the machine's width: loads that widen bfloat16, the exponential and what
// is made of it, sums across lanes, and the product for many rows.
//
// GCC's vector extension, which clang has too. Numbers are stored as T and computed as Sum<T>.
#pragma once
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#if defined(__AVX__)
#include <immintrin.h>
#endif
#if defined(__AVX512F__)
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

// For x from `lowest` up to about 1: a power 2^n, the rest r of x, |r| <= ln(2) / 2, and the
// quotient (e^r - 1) / r by its Taylor series. So e^x = power * (quotient * r + 1).
template <class A> struct Reduced {
    Vec<A> power, r, quotient;
};
template <class A> inline Reduced<A> reduced(Vec<A> x) {
    typedef Simd<A> S;
    constexpr A inverse_factorials[] = {
        1, 1, A(1. / 2), A(1. / 6), A(1. / 24), A(1. / 120), A(1. / 720), A(1. / 5040),
        A(1. / 40320), A(1. / 362880), A(1. / 3628800), A(1. / 39916800), A(1. / 479001600),
        A(1. / 6227020800)};
    // Adding 1.5 * 2^mantissa rounds to an integer and leaves it in the low bits.
    Vec<A> shifted = x * A(1.44269504088896340736) + S::shift, n = shifted - S::shift;
    Vec<A> r = x - n * S::ln2_high - n * S::ln2_low;
    Vec<A> series = Vec<A>{} + inverse_factorials[S::terms - 1];
    for (int k = S::terms - 2; k > 0; --k) series = series * r + inverse_factorials[k];
    typename S::I exponent = (typename S::I)shifted + S::bias;
    return {(Vec<A>)(exponent << S::mantissa), r, series};
}

// e^x for x up to about 1. Within two units in the last place; exactly 0 below `lowest`, -inf
// included; NaN stays NaN.
template <class A> inline Vec<A> exponential(Vec<A> x) {
    Reduced<A> e = reduced<A>(x);
    return x < Simd<A>::lowest ? Vec<A>{} : (e.quotient * e.r + A(1)) * e.power;
}

// The hyperbolic tangent, from e^(-2 |x|) - 1: nothing overflows, and small numbers keep all their
// digits.
template <class A> inline Vec<A> hyperbolic_tangent(Vec<A> x) {
    Vec<A> twice = x < 0 ? 2 * x : -2 * x;
    Reduced<A> e = reduced<A>(twice < Simd<A>::lowest ? Vec<A>{} + Simd<A>::lowest : twice);
    Vec<A> less = e.quotient * e.r * e.power + (e.power - 1), size = less / (2 + less);
    return x < 0 ? size : -size;
}

// The logistic function, from e^-|x|, which cannot overflow.
template <class A> inline Vec<A> logistic(Vec<A> x) {
    Vec<A> e = exponential<A>(x < 0 ? x : -x);
    return (x < 0 ? e : Vec<A>{} + 1) / (1 + e);
}

// How a gate is bent before it multiplies; native_products.py has the same numbers.
enum Activation : i64 { silu, gelu_tanh };

// activation(gate) * up. GELU's (1 + tanh(u)) / 2 is the logistic function of 2 u.
template <class A> inline Vec<A> gated(i64 activation, Vec<A> gate, Vec<A> up) {
    constexpr A slope = A(1.59576912160573071176), cubic = A(0.044715);  // 2 sqrt(2 / pi)
    Vec<A> x = gate;
    if (activation == gelu_tanh) x = slope * (gate + cubic * (gate * gate * gate));
    return gate * logistic<A>(x) * up;
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

}  // namespace
