// Neighbouring layers of a decoder over the rows of one step, an operator after the other: what the
// Python of a layer does, for a model small enough that calling the operators takes longer than
// they do.
#pragma once
#include <chrono>

#include "attention.h"
#include "attention_few.h"
#include "attention_many.h"
#include "products.h"
#include "rows.h"

namespace {

// Structures that native_layers.py has too. A pointer that a layer does not need is 0. Mixer and
// feed-forward norms are those of results, before they are added to the residual stream.
struct Layer {
    const void *input_norm, *mixer_norm, *post_norm, *feed_forward_norm, *q_norm, *k_norm, *cos_sin;
    const Matrix *qkv, *output, *gate_up, *down;
    void *keys, *values;
    i64 group, heads, kv_heads, head_dim, block_size, block_stride, head_stride, window, activation;
    double scale, softcap, eps, head_eps, residual_multiplier;
};
struct Group {
    const AttentionCall* attention;  // what does not depend on the layer
    const i64* slots;
    i64 pairs;  // of a query and a key, at most, for one head
};
struct LayersCall {
    const Layer* layers;
    const Group* groups;
    void *h, *scratch;
    const i64* positions;
    i64 num_layers, rows, hidden, threads;
    double attention_s;  // written: seconds spent attending
};

// Work up to which one thread is faster than setting others going: numbers, and multiplications.
constexpr i64 one_thread = 1 << 13, one_thread_products = 1 << 17;

template <class T> struct Layers {
    LayersCall& c;
    int threads(i64 work, i64 alone) const { return work > alone ? int(c.threads) : 1; }
    int wide(i64 size) const { return threads(c.rows * size, one_thread); }

    void product(const T* x, const Matrix& m, T* y) const {
        linear(x, m, y, c.rows, m.inputs,
               threads(c.rows * m.inputs * m.outputs, one_thread_products));
    }
    void norm(const Layer& layer, const T* x, T* residual, const void* weight, T* out) const {
        rms_norm(x, residual, (const T*)weight, out, c.rows, 1, c.hidden, c.hidden, 0, layer.eps,
                 wide(c.hidden));
    }

    // What is added to the residual stream of a block's result, in place.
    void to_add(const Layer& layer, const void* weight, T* result) const {
        if (weight) norm(layer, result, nullptr, weight, result);
        if (layer.residual_multiplier == 1) return;
        Sum<T> factor = Sum<T>(layer.residual_multiplier);
        for (i64 j = 0, n = c.rows * c.hidden; j < n; j += lanes<Sum<T>>)
            store(result + j, load(result + j, n - j) * factor, n - j);
    }

    void mixer(const Layer& layer, const T* x, T* qkv, T* out) const {
        const Group& group = c.groups[layer.group];
        i64 projected = layer.qkv->outputs, attended = layer.heads * layer.head_dim;
        product(x, *layer.qkv, qkv);
        auto start = std::chrono::steady_clock::now();
        rotary_store(qkv, c.positions, (const Sum<T>*)layer.cos_sin, (T*)layer.keys,
                     (T*)layer.values, group.slots, (const T*)layer.q_norm, (const T*)layer.k_norm,
                     c.rows, layer.heads, layer.kv_heads, layer.head_dim, projected,
                     layer.block_size, layer.block_stride, layer.head_stride, layer.head_eps,
                     wide(projected));
        AttentionCall call = *group.attention;
        T* heads = qkv + c.rows * projected;
        call.q = qkv, call.keys = layer.keys, call.values = layer.values;
        call.out = heads, call.lse = nullptr;
        call.num_kv_heads = layer.kv_heads, call.group_size = layer.heads / layer.kv_heads;
        call.head_dim = layer.head_dim, call.block_size = layer.block_size;
        call.q_stride = projected;
        call.block_stride = layer.block_stride, call.head_stride = layer.head_stride;
        call.window = layer.window, call.scale = layer.scale, call.softcap = layer.softcap;
        call.threads = threads(group.pairs * attended, one_thread_products);
        Attention<T>{call}.run();
        std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
        c.attention_s += spent.count();
        product(heads, *layer.output, out);
    }

    void feed_forward(const Layer& layer, const T* x, T* between, T* out) const {
        const Matrix& gate_up = *layer.gate_up;
        i64 rows = c.rows, inner = gate_up.outputs / 2;
        if (inner % panel<T>) {
            T* both = between + rows * inner;
            product(x, gate_up, both);
            gate_and_mul(layer.activation, both, between, rows, inner, 2 * inner, wide(2 * inner));
        } else {
            gated_linear(x, gate_up, between, rows, gate_up.inputs, layer.activation,
                         threads(rows * gate_up.inputs * gate_up.outputs, one_thread_products));
        }
        product(between, *layer.down, out);
    }

    void run() {
        i64 n = c.rows * c.hidden;
        T *h = (T*)c.h, *x = (T*)c.scratch, *delta = x + n, *between = delta + n;
        c.attention_s = 0;
        for (i64 i = 0; i < c.num_layers; ++i) {
            const Layer& layer = c.layers[i];
            if (i) norm(layer, delta, h, layer.input_norm, x);
            else norm(layer, h, nullptr, layer.input_norm, x);
            mixer(layer, x, between, delta);
            to_add(layer, layer.mixer_norm, delta);
            norm(layer, delta, h, layer.post_norm, x);
            feed_forward(layer, x, between, delta);
            to_add(layer, layer.feed_forward_norm, delta);
        }
        for (i64 j = 0; j < n; j += lanes<Sum<T>>)
            store(h + j, load(h + j, n - j) + load(delta + j, n - j), n - j);
    }
};

}  // namespace
