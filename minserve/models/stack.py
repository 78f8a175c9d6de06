"""A decoder's layers as plain tensors, for operators that run whole layers in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from minserve.kernels.base import LayerTensors
from minserve.models.weights import DecoderWeights
from minserve.spec import ModelSpec


def layer_tensors(
    spec: ModelSpec, weights: DecoderWeights, tables: Mapping[int, Tensor]
) -> Sequence[LayerTensors] | None:
    """Every layer's tensors, with `tables[head_dim]` as its rotary table. None if a weight is not a
    packed matrix, a gated projection has a bias, or a layer stores no keys and values."""
    if any(layer.mixer.cache_layer is not None for layer in spec.layers):
        return None
    found = []
    for layer, stored in zip(spec.layers, weights.layers, strict=True):
        mixer = layer.mixer
        qkv, output = stored.qkv.weight, stored.output.weight
        gate_up, down = stored.gate_up.weight, stored.down.weight
        if (
            qkv.packed is None
            or output.packed is None
            or gate_up.packed is None
            or down.packed is None
            or gate_up.bias is not None
        ):
            return None
        found.append(
            LayerTensors(
                input_norm=stored.input_norm.weight,
                qkv=qkv.packed,
                qkv_bias=qkv.bias,
                q_norm=None if stored.q_norm is None else stored.q_norm.weight,
                k_norm=None if stored.k_norm is None else stored.k_norm.weight,
                cos_sin=tables[mixer.head_dim],
                output=output.packed,
                output_bias=output.bias,
                post_norm=stored.post_norm.weight,
                gate_up=gate_up.packed,
                down=down.packed,
                down_bias=down.bias,
                num_heads=mixer.num_heads,
                num_kv_heads=mixer.num_kv_heads,
                head_dim=mixer.head_dim,
                inner=layer.feed_forward.intermediate_size,
                scale=mixer.scale,
                window=mixer.window,
                eps=stored.input_norm.eps,
            )
        )
    return found
