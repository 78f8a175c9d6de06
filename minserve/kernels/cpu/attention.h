// Attention over pages, of a ragged batch of chunks, decode rows and trees.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "vectors.h"

namespace {

// One call; native_attention.py has the same structure. A window or softcap of 0 is none, an lse of
// 0 not wanted, a tree of 0 none: its masks are those of kernels/tree.py, one for each row of the
// batch.
struct AttentionCall {
    const void *q, *keys, *values;
    void *out, *lse;
    const int32_t *block_tables, *query_starts, *kv_lens;
    const i64* tree;
    i64 num_requests, max_blocks, num_kv_heads, group_size, head_dim, block_size;
    i64 q_stride, block_stride, head_stride, window, threads;
    double scale, softcap;
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

    // Scaled scores between -softcap and softcap. Not inlined, so that all rows get the same bits.
    __attribute__((noinline)) void cap(A* scores, i64 n) const {
        const A most = A(c.softcap), inverse = 1 / most;
        for (i64 j = 0; j < n; j += L)
            store(scores + j, most * hyperbolic_tangent<A>(load(scores + j) * inverse));
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

    // How a unit's rows attend: attention_many.h and attention_few.h.
    template <int W> void many(const Unit& u, i64 index, A* scratch) const;
    template <int R> void few(const Unit& u, i64 index, i64 heads, A* scratch) const;
    template <int R>
    void add_values(A* out, const T* values, const i64* places, const A* scores, const A* shrink,
                    i64 n) const;
    void fetch(const T* from, const i64* places, i64 n) const;

    static Unit of_head(Unit u, i64 head) {
        u.kv_head += head;
        return u;
    }
    i64 scratch_size() const {
        i64 rows = 4 * most_together, few = rows * (3 * L + 2 * D + key_tile);
        return std::max(few, 2 * max_rows * (D + 1) + key_tile * (max_rows + 2 * D));
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

}  // namespace
