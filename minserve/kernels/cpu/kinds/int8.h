// Weights stored as signed bytes with one scale per output: a weight is its byte times the scale.
// Products add up bytes times x, and scale the sum.
#pragma once
#include "../matrix.h"
#include "../vectors.h"

namespace {

// A vector of bytes as numbers, which is exact.
template <class A> inline Vec<A> numbers(const int8_t* from) {
    typedef int8_t Bytes __attribute__((vector_size(lanes<A>)));
    Bytes bytes;
    memcpy(&bytes, from, sizeof bytes);
    return __builtin_convertvector(bytes, Vec<A>);
}
// The processor's conversions; GCC's own go by parts of the vector.
#if defined(__AVX512F__)
template <> inline Vec<float> numbers<float>(const int8_t* from) {
    return (Vec<float>)_mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
}
template <> inline Vec<double> numbers<double>(const int8_t* from) {
    return (Vec<double>)_mm512_cvtepi32_pd(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from)));
}
#elif defined(__AVX2__)
template <> inline Vec<float> numbers<float>(const int8_t* from) {
    return (Vec<float>)_mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from)));
}
template <> inline Vec<double> numbers<double>(const int8_t* from) {
    int32_t four;
    memcpy(&four, from, sizeof four);
    return (Vec<double>)_mm256_cvtepi32_pd(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(four)));
}
#endif

// Scales as numbers of the sums' type.
inline Vec<float> scales(const float* from, i64 n, float) { return load(from, n); }
inline Vec<double> scales(const float* from, i64 n, double) {
    Vec<double> v = {};
    for (i64 i = 0; i < lanes<double> && i < n; ++i) v[i] = from[i];
    return v;
}

// See Dense for the members.
template <class T> struct Int8 {
    typedef T Number;
    typedef int8_t Code;
    typedef Sum<T> Row;
    static constexpr i64 depth = 1;
    static void read(const T* from, Row* to, i64 n) { widen(from, to, n); }
    static Vec<Row> weights(const int8_t* from) { return numbers<Row>(from); }
    static Row factor(const Row* from) { return *from; }
    template <class F> static void add(Vec<Row>& sum, F factor, Vec<Row> w) { sum += factor * w; }
    static Vec<Row> finish(Vec<Row> sum, const Matrix& m, i64 output, i64 n) {
        return sum * scales(m.scales + output, n, Row());
    }
};

}  // namespace
