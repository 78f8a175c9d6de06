// The operators of minserve/kernels/base.py for float, double and bfloat16 on a CPU.
//
// A plain C ABI for ctypes and no torch headers, so that it compiles in seconds. No fast-math: -inf
// and NaN mean what they say. Strides are in elements unless a name says bytes.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <vector>

#include "vectors.h"

namespace {

// ---- row-wise operators -----------------------------------------------------------------------

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

// silu(gate) * up, the logistic function from e^-|g|, which cannot overflow.
template <class A> inline Vec<A> gated(Vec<A> gate, Vec<A> up) {
    Vec<A> e = exponential<A>(gate < 0 ? gate : -gate);
    return gate * ((gate < 0 ? e : Vec<A>{} + 1) / (1 + e)) * up;
}

template <class T>
void silu_and_mul(const T* gate_up, T* out, i64 rows, i64 inner, i64 row_stride, int threads) {
    typedef Sum<T> A;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (i64 row = 0; row < rows; ++row) {
        const T* gate = gate_up + row * row_stride;
        for (i64 i = 0; i < inner; i += lanes<A>) {
            i64 n = inner - i;
            store(out + row * inner + i, gated<A>(load(gate + i, n), load(gate + inner + i, n)), n);
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

// y = x @ w.T + bias for at most 4 rows and weights that are not packed, a vector of outputs at a
// time.
template <int R>
void few_rows_linear(const bf16* x, const bf16* w, const bf16* bias, bf16* y, i64 in, i64 out,
                     i64 x_stride, int threads) {
    constexpr i64 L = lanes<float>;
    static thread_local std::vector<Row<bf16>> scratch;
    scratch.resize(R * in);
    Row<bf16>* rows_x = scratch.data();
    for (i64 row = 0; row < R; ++row) Packed<bf16>::read(x + row * x_stride, rows_x + row * in, in);
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

// y = x @ w.T + bias with w in panels (vectors.h), of which the last may be filled up with zeros.
// Gated: w has 2 * out outputs, in whole panels, and y = silu(first half) * second half, without
// bias: what lies between never leaves the cache.
template <class T, bool gate>
void linear(const T* x, const T* w, const T* bias, T* y, i64 rows, i64 in, i64 out, i64 x_stride,
            int threads) {
    typedef Sum<T> A;
    constexpr i64 width = panel<T>, L = lanes<A>, most = 4;  // panels at once, for few rows
    // Read where they lie, or a copy: widened, or filled up to whole steps.
    static thread_local std::vector<Row<T>> scratch;
    const Row<T>* rows_x = (const Row<T>*)x;
    constexpr i64 depth = Packed<T>::depth;
    i64 terms = (in + depth - 1) / depth * depth;
    if (sizeof(T) != sizeof(Row<T>) || terms != in) {
        scratch.assign(rows * terms, {});
        for (i64 row = 0; row < rows; ++row)
            Packed<T>::read(x + row * x_stride, scratch.data() + row * terms, in);
        rows_x = scratch.data(), x_stride = terms;
    }
    // Few rows would leave most of a processor waiting for its own sums: they take more panels.
    i64 panels = (out + width - 1) / width, together = rows * most <= panel_rows ? most
                                                       : rows * 2 <= panel_rows ? 2 : 1;
    // Rows that stay in the cache while all panels pass.
    i64 chunk = std::max<i64>(16 * panel_rows, (1 << 16) / terms / panel_rows * panel_rows);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (i64 part = 0; part < threads; ++part)
        for (i64 start = 0; start < rows; start += chunk) {
            i64 end = std::min(rows, start + chunk), blocks = (end - start - 1) / panel_rows + 1;
            i64 p = panels * part / threads, stop = panels * (part + 1) / threads;
            for (i64 count; p < stop; p += count) {
                count = stop - p >= together ? together : 1;
                const T* from = w + p * terms * width;
                i64 span = count * width;
                // Blocks of nearly equal size: 7 rows are 4 and 3, not 6 and 1.
                for (i64 block = 0, row = start, n; block < blocks; ++block, row += n) {
                    n = (end - row + blocks - block - 1) / (blocks - block);
                    A sums[2][panel_rows * width];  // = most * width of as many rows fewer
                    auto multiply = [&](const T* weights, A* to) {
                        const Row<T>* at = rows_x + row * x_stride;
                        if (count == 4) panel_block<4>(n, at, x_stride, terms, weights, to, span);
                        else if (count == 2)
                            panel_block<2>(n, at, x_stride, terms, weights, to, span);
                        else panel_block<1>(n, at, x_stride, terms, weights, to, span);
                    };
                    multiply(from, sums[0]);
                    if (gate) multiply(from + panels * width * terms, sums[1]);
                    for (i64 i = 0; i < n; ++i)
                        for (i64 o = p * width, j = 0; j < span && o + j < out; j += L) {
                            i64 some = out - o - j, at = i * span + j;
                            Vec<A> sum = load(sums[0] + at);
                            if (gate) sum = gated<A>(sum, load(sums[1] + at));
                            else if (bias) sum += load(bias + o + j, some);
                            store(y + (row + i) * out + o + j, sum, some);
                        }
                }
            }
        }
}

// ---- paged attention --------------------------------------------------------------------------

// One call; native_attention.py has the same structure. A window of 0 is none, an lse of 0 not
// wanted, a tree of 0 none: its masks are those of kernels/tree.py, one for each row of the batch.
struct AttentionCall {
    const void *q, *keys, *values;
    void *out, *lse;
    const int32_t *block_tables, *query_starts, *kv_lens;
    const i64* tree;
    i64 num_requests, max_blocks, num_kv_heads, group_size, head_dim, block_size;
    i64 q_stride, block_stride, head_stride, window, threads;
    double scale;
};

// What one thread does at a time: a tile of rows over a range of keys. The query heads that share a
// KV head count as rows: row f of a request and KV head is query f / group_size, head
// f % group_size of the group. So each key is read once for all of them.
struct Unit {
    i64 request, kv_head, first_row, num_rows, first_key, end_key;
};

constexpr i64 key_tile = 64;      // keys between two updates of a row's running maximum
constexpr i64 split_keys = 1024;  // a decode row's keys are divided among units at multiples of it
constexpr i64 most_together = 8;  // KV heads that a thread takes together
constexpr i64 plain = -1;         // the mask of a row that sees all rows before it

template <class T> struct Attention {
    typedef Sum<T> A;
    static constexpr i64 L = lanes<A>, max_rows = most_vectors * L;
    const AttentionCall& c;
    const i64 D = c.head_dim, G = c.group_size;
    const i64 partial_size = std::min(max_rows, G) * (D + 2);
    std::vector<i64> first_unit{0};  // of each request
    std::vector<A> partials{};       // of each unit, if any request is split: see finish()

    i64 query_len(i64 r) const { return c.query_starts[r + 1] - c.query_starts[r]; }
    i64 tiles(i64 r) const { return (query_len(r) * G + max_rows - 1) / max_rows; }
    i64 oldest(i64 position) const {
        return c.window ? std::max<i64>(0, position - c.window + 1) : 0;
    }
    i64 position(const Unit& u, i64 row) const {
        return c.kv_lens[u.request] - query_len(u.request) + (u.first_row + row) / G;
    }
    // Units that share the keys of a decode row. Where they are cut depends on the position alone,
    // so that a row's sums depend on nothing else in the batch; in double nothing is cut, so that
    // they do not depend on how a prompt was chunked either.
    i64 splits(i64 r) const {
        if (query_len(r) > 1 || sizeof(A) == 8) return 1;
        i64 last = c.kv_lens[r] - 1;
        return last / split_keys - oldest(last) / split_keys + 1;
    }

    void run() {
        bool split = false;
        for (i64 r = 0; r < c.num_requests; ++r) {
            first_unit.push_back(first_unit[r] + tiles(r) * splits(r) * c.num_kv_heads);
            split |= splits(r) > 1;
        }
        if (split) partials.resize(first_unit.back() * partial_size);
        // Heads that one thread takes one after the other: they lie side by side in each page. Few
        // enough that every thread has work.
        i64 together = std::min(c.num_kv_heads, most_together), units = first_unit.back();
        while (together > 1 && (c.num_kv_heads % together || units < 4 * c.threads * together))
            --together;
#pragma omp parallel num_threads(int(c.threads)) if (c.threads > 1)
        {
            static thread_local std::vector<A> memory;
            memory.resize(scratch_size());
            A* scratch = memory.data();
            // From the end: the last tile of a long chunk sees the most keys.
#pragma omp for schedule(dynamic)
            for (i64 group = units / together - 1; group >= 0; --group)
                attend(unit(group * together), group * together, together, scratch);
            if (split) {
#pragma omp for
                for (i64 r = 0; r < c.num_requests; ++r) merge(r, scratch);
            }
        }
    }

    // `heads` units from `index` on, which differ in their KV head only.
    void attend(Unit u, i64 index, i64 heads, A* scratch) const {
        if constexpr (sizeof(A) == 4)
            if (u.num_rows <= 4 && D % (2 * L) == 0) {
                if (u.num_rows == 4) few<4>(u, index, heads, scratch);
                else if (u.num_rows == 3) few<3>(u, index, heads, scratch);
                else if (u.num_rows == 2) few<2>(u, index, heads, scratch);
                else few<1>(u, index, heads, scratch);
                return;
            }
        for (i64 stop = index + heads; index < stop; ++index, ++u.kv_head) {
            if (u.num_rows > 2 * L) many<most_vectors>(u, index, scratch);
            else if (u.num_rows > L) many<2>(u, index, scratch);
            else many<1>(u, index, scratch);
        }
    }

    Unit unit(i64 index) const {
        auto after = std::upper_bound(first_unit.begin(), first_unit.end(), index);
        i64 request = after - first_unit.begin() - 1, count = splits(request);
        i64 rest = index - first_unit[request], split = rest / c.num_kv_heads % count;
        Unit u{request, rest % c.num_kv_heads, rest / c.num_kv_heads / count * max_rows, 0, 0, 0};
        u.num_rows = std::min(max_rows, query_len(request) * G - u.first_row);
        u.first_key = oldest(position(u, 0));
        u.end_key = position(u, u.num_rows - 1) + 1;
        if (count > 1) {
            i64 cut = (u.first_key / split_keys + split) * split_keys;
            u.first_key = std::max(u.first_key, cut);
            u.end_key = std::min(u.end_key, cut + split_keys);
        }
        return u;
    }

    const T* query(const Unit& u, i64 row) const {
        i64 f = u.first_row + row, head = u.kv_head * G + f % G;
        return (const T*)c.q + (c.query_starts[u.request] + f / G) * c.q_stride + head * D;
    }

    // Where keys and values [key, key + n) of a request lie, from a head's first ones on.
    void find(const Unit& u, i64 key, i64 n, i64* places) const {
        const int32_t* page = c.block_tables + u.request * c.max_blocks + key / c.block_size;
        i64 offset = key % c.block_size;
        for (i64 j = 0; j < n; ++page, offset = 0) {
            i64 stop = std::min(n, j + c.block_size - offset);
            i64 at = *page * c.block_stride + offset * D;
            for (; j < stop; ++j, at += D) places[j] = at;
        }
    }

    // Hide what a row must not see; scores[row * by_row + j * by_key] belongs to key + j. Later
    // rows see newer keys: a key is hidden from the first rows and, with a window, from the last.
    void mask(const Unit& u, A* scores, i64 by_row, i64 by_key, i64 key, i64 n) const {
        if (c.tree) mask_branches(u, scores, by_row, by_key, key, n);
        if (key + n - 1 <= position(u, 0) && key >= oldest(position(u, u.num_rows - 1))) return;
        i64 start = c.kv_lens[u.request] - query_len(u.request);
        for (i64 j = 0; j < n; ++j, scores += by_key) {
            i64 early = (key + j - start) * G - u.first_row;
            i64 late = c.window ? std::max<i64>(0, early + c.window * G) : u.num_rows;
            early = std::min(early, u.num_rows);
            for (i64 row = 0; row < early; ++row) scores[row * by_row] = -inf<A>;
            for (i64 row = late; row < u.num_rows; ++row) scores[row * by_row] = -inf<A>;
        }
    }

    // The same for what a tree hides: of the request's rows, a row sees those in its mask. A single
    // row is never a tree. Python has checked that only plain masks meet more keys than bits.
    void mask_branches(const Unit& u, A* scores, i64 by_row, i64 by_key, i64 key, i64 n) const {
        i64 start = c.kv_lens[u.request] - query_len(u.request), first = std::max(key, start);
        if (first >= key + n || query_len(u.request) == 1) return;
        const i64* tree = c.tree + c.query_starts[u.request];
        for (i64 row = 0; row < u.num_rows; ++row) {
            i64 sees = tree[(u.first_row + row) / G];
            if (sees == plain) continue;
            for (i64 at = first; at < key + n; ++at) {
                if (sees >> (at - start) & 1) continue;
                scores[row * by_row + (at - key) * by_key] = -inf<A>;
            }
        }
    }

    // Many rows: each is a lane. Keys and values are widened once into scratch, and both products
    // are dense ones along the rows, in which nothing is summed across lanes.
    template <int W> void many(const Unit& u, i64 index, A* scratch) const {
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

    // Few rows, and a head_dim of whole pairs of vectors: vectors run along head_dim, and keys and
    // values are read where they lie, those of the heads side by side.
    template <int R> void few(const Unit& u, i64 index, i64 heads, A* scratch) const {
        const i64 rows = heads * R;  // head after head
        const T *keys = (const T*)c.keys + u.kv_head * c.head_stride;
        const T *values = (const T*)c.values + u.kv_head * c.head_stride;
        // Of each row: its largest score and its factor in all lanes, its sum of weights by lane.
        A *most = scratch, *shrink = most + rows * L, *weight = shrink + rows * L;
        A *out = weight + rows * L, *scores = out + rows * D;
        Row<T>* q = (Row<T>*)(scores + rows * key_tile);
        for (i64 row = 0; row < rows; ++row)
            Packed<T>::read(query(of_head(u, row / R), row % R), q + row * D, D);
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

    // Into the second-level cache: the first cannot wait for as many lines at once.
    void fetch(const T* from, const i64* places, i64 n) const {
        for (i64 j = 0; j < n; ++j)
            for (i64 d = 0; d < D; d += 64 / i64(sizeof(T)))
                __builtin_prefetch(from + places[j] + d, 0, 2);
    }
    static Unit of_head(Unit u, i64 head) {
        u.kv_head += head;
        return u;
    }
    i64 scratch_size() const {
        i64 rows = 4 * most_together, few = rows * (3 * L + 2 * D + key_tile);
        return std::max(few, 2 * max_rows * (D + 1) + key_tile * (max_rows + 2 * D));
    }

    // out = out * shrink + scores @ values for R rows of a head and n keys, at most a vector of
    // them; without shrink, it is 1.
    template <int R>
    void add_values(A* out, const T* values, const i64* places, const A* scores, const A* shrink,
                    i64 n) const {
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

    // What a unit found for a row: weighted sum of values, largest score, sum of weights. It is the
    // whole answer, or a part to be merged.
    void finish(const Unit& u, i64 index, i64 row, const A* sum, A most, A weight) const {
        if (splits(u.request) == 1) return write(u, row, sum, most, weight);
        A* partial = const_cast<A*>(partials.data()) + index * partial_size + row * (D + 2);
        std::copy(sum, sum + D, partial);
        partial[D] = most;
        partial[D + 1] = weight;
    }

    void write(const Unit& u, i64 row, const A* sum, A most, A weight) const {
        i64 f = u.first_row + row, head = u.kv_head * G + f % G;
        i64 at = (c.query_starts[u.request] + f / G) * c.num_kv_heads * G + head;
        A total = c.tree && weight == 0 ? 1 : weight;  // a mask may hide all keys: zeros, not NaN
        for (i64 d = 0; d < D; d += L)
            store((T*)c.out + at * D + d, load(sum + d, D - d) / total, D - d);
        if (c.lse) ((A*)c.lse)[at] = most + std::log(weight);
    }

    void merge(i64 request, A* sum) const {
        i64 count = splits(request), heads = c.num_kv_heads, next = heads * partial_size;
        for (i64 tile = 0; count > 1 && tile < tiles(request) * heads; ++tile) {
            i64 index = first_unit[request] + tile / heads * count * heads + tile % heads;
            Unit u = unit(index);
            for (i64 row = 0; row < u.num_rows; ++row) {
                const A* part = partials.data() + index * partial_size + row * (D + 2);
                A most = -inf<A>, weight = 0;
                for (i64 s = 0; s < count; ++s) most = std::max(most, part[s * next + D]);
                std::fill(sum, sum + D, A(0));
                for (i64 s = 0; s < count; ++s) {
                    A share = std::exp(part[s * next + D] - most);
                    weight += share * part[s * next + D + 1];
                    for (i64 d = 0; d < D; ++d) sum[d] += share * part[s * next + d];
                }
                write(u, row, sum, most, weight);
            }
        }
    }
};

// ---- whole layers -------------------------------------------------------------------------------

// Structures that native_layers.py has too. A pointer that a model does not need is 0.
struct Layer {
    const void *input_norm, *qkv, *qkv_bias, *q_norm, *k_norm, *cos_sin, *output, *output_bias;
    const void *post_norm, *gate_up, *down, *down_bias;
    void *keys, *values;
    i64 group, window;
    double scale;
};
struct Group {
    const AttentionCall* attention;  // all but queries, pages, window and scale
    const i64* slots;
};
struct LayersCall {
    const Layer* layers;
    const Group* groups;
    void *h, *scratch;
    const i64* positions;
    i64 num_layers, rows, hidden, inner;
    double eps, attention_s;  // the last is written: seconds spent attending
    i64 threads;
};

// Work up to which one thread is faster than setting others going: numbers, and multiplications.
constexpr i64 one_thread = 1 << 13, one_thread_products = 1 << 17;

// The layers of a decoder over the rows of one step, an operator after the other: what the Python
// of a layer does, for a model small enough that calling the operators takes longer than they do.
template <class T> struct Layers {
    LayersCall& c;
    int threads(i64 work, i64 alone) const { return work > alone ? int(c.threads) : 1; }
    int wide(i64 size) const { return threads(c.rows * size, one_thread); }

    void product(const T* x, const void* w, const void* bias, T* y, i64 in, i64 out) const {
        linear<T, false>(x, (const T*)w, (const T*)bias, y, c.rows, in, out, in,
                         threads(c.rows * in * out, one_thread_products));
    }
    void norm(const T* x, T* residual, const void* weight, T* out) const {
        rms_norm(x, residual, (const T*)weight, out, c.rows, 1, c.hidden, c.hidden, 0, c.eps,
                 wide(c.hidden));
    }
    void feed_forward(const Layer& layer, const T* x, T* between, T* out) const {
        i64 inner = c.inner, rows = c.rows, products = 2 * rows * c.hidden * inner;
        if (inner % panel<T>) {
            T* gate_up = between + rows * inner;
            product(x, layer.gate_up, nullptr, gate_up, c.hidden, 2 * inner);
            silu_and_mul(gate_up, between, rows, inner, 2 * inner, wide(2 * inner));
        } else {
            linear<T, true>(x, (const T*)layer.gate_up, nullptr, between, rows, c.hidden, inner,
                            c.hidden, threads(products, one_thread_products));
        }
        product(between, layer.down, layer.down_bias, out, inner, c.hidden);
    }

    void run() {
        i64 rows = c.rows;
        T *h = (T*)c.h, *x = (T*)c.scratch, *delta = x + rows * c.hidden;
        T* between = delta + rows * c.hidden;
        c.attention_s = 0;
        for (i64 i = 0; i < c.num_layers; ++i) {
            const Layer& layer = c.layers[i];
            AttentionCall call = *c.groups[layer.group].attention;
            i64 D = call.head_dim, kv_heads = call.num_kv_heads, heads = kv_heads * call.group_size;
            i64 projected = (heads + 2 * kv_heads) * D;
            if (i) norm(delta, h, layer.input_norm, x);
            else norm(h, nullptr, layer.input_norm, x);
            T *qkv = between, *attended = qkv + rows * projected;
            product(x, layer.qkv, layer.qkv_bias, qkv, c.hidden, projected);
            auto start = std::chrono::steady_clock::now();
            rotary_store(qkv, c.positions, (const Sum<T>*)layer.cos_sin, (T*)layer.keys,
                         (T*)layer.values, c.groups[layer.group].slots, (const T*)layer.q_norm,
                         (const T*)layer.k_norm, rows, heads, kv_heads, D, projected,
                         call.block_size, call.block_stride, call.head_stride, c.eps,
                         wide(projected));
            call.q = qkv, call.keys = layer.keys, call.values = layer.values;
            call.out = attended, call.lse = nullptr;
            call.window = layer.window, call.scale = layer.scale;
            Attention<T>{call}.run();
            std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
            c.attention_s += spent.count();
            product(attended, layer.output, layer.output_bias, delta, heads * D, c.hidden);
            norm(delta, h, layer.post_norm, x);
            feed_forward(layer, x, between, delta);
        }
        for (i64 j = 0, n = rows * c.hidden; j < n; j += lanes<Sum<T>>)
            store(h + j, load(h + j, n - j) + load(delta + j, n - j), n - j);
    }
};

}  // namespace

// ---- the C ABI --------------------------------------------------------------------------------

#define EXPORT extern "C" __attribute__((visibility("default"))) void
#define FOR_TYPE(T, name)                                                                         \
    EXPORT rms_norm_##name(const T* x, T* residual, const T* weight, T* out, i64 rows, i64 heads, \
                           i64 n, i64 row_stride, i64 head_stride, double eps, int threads) {     \
        rms_norm(x, residual, weight, out, rows, heads, n, row_stride, head_stride, eps, threads); \
    }                                                                                             \
    EXPORT silu_and_mul_##name(const T* x, T* out, i64 rows, i64 inner, i64 stride, int threads) { \
        silu_and_mul(x, out, rows, inner, stride, threads);                                       \
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
    EXPORT linear_##name(const T* x, const T* w, const T* bias, T* y, i64 rows, i64 in, i64 out,  \
                         i64 x_stride, int threads) {                                             \
        linear<T, false>(x, w, bias, y, rows, in, out, x_stride, threads);                        \
    }                                                                                             \
    EXPORT gated_linear_##name(const T* x, const T* w, T* y, i64 rows, i64 in, i64 out,           \
                               i64 x_stride, int threads) {                                       \
        linear<T, true>(x, w, nullptr, y, rows, in, out, x_stride, threads);                      \
    }                                                                                             \
    EXPORT panel_##name(i64* width, i64* depth) {                                                 \
        *width = panel<T>, *depth = Packed<T>::depth;                                             \
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

// Copy rows of [heads, row_bytes] into their slots of [blocks, heads, block_size, row_bytes].
EXPORT store_kv(const char* k, const char* v, char* keys, char* values, const i64* slots, i64 rows,
                i64 heads, i64 row_bytes, i64 k_stride_bytes, i64 v_stride_bytes, i64 block_size,
                i64 block_stride_bytes, i64 head_stride_bytes, int threads) {
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

// Give the calling thread a team of its own, which waits until the thread ends: see spinning.py.
EXPORT open_team(int threads) {
    static std::atomic<int> met;
#pragma omp parallel num_threads(threads)
    ++met;  // an empty region would be dropped
}
