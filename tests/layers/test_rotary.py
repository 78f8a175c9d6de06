"""Rotary tables are transformers' own, bit for bit in float32, for every scaling."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from minserve.kernels import TorchOps, why_not_native
from minserve.kernels.cpu.native import native_ops
from minserve.layers import rotary_table
from minserve.models import Decoder, random_weights
from minserve.models.blocks import AttentionSpec, FeedForwardSpec
from minserve.spec import LayerSpec, ModelSpec, RopeSpec

LLAMA3 = RopeSpec(
    5e5, "llama3", 8.0, original_max_position=8192, low_freq_factor=1.0, high_freq_factor=4.0
)
YARN = RopeSpec(1e6, "yarn", 4.0, original_max_position=1024)
SPECS = {
    "default": RopeSpec(1e6),
    "linear": RopeSpec(1e4, "linear", 4.0),
    "dynamic": RopeSpec(1e4, "dynamic", 2.0, original_max_position=4096),
    "llama3": LLAMA3,
    "llama3 uneven": replace(LLAMA3, theta=1e4, factor=32.0, original_max_position=1000),
    "yarn": YARN,
    "yarn untruncated": replace(YARN, truncate=False, beta_fast=20.0, beta_slow=2.0),
    "yarn attention factor": replace(YARN, attention_factor=0.7),
    "yarn mscales": replace(YARN, mscale=0.7, mscale_all_dim=1.2),
}


def hugging_face_table(rope: RopeSpec, head_dim: int, length: int, max_position: int) -> Any:
    """Cosines and sines of positions 0 to `length`, by a transformers rotary module."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    parameters: dict[str, Any] = {"rope_type": rope.kind, "rope_theta": rope.theta}
    if rope.kind != "default":
        parameters["factor"] = rope.factor
    if rope.kind in ("llama3", "yarn"):
        parameters["original_max_position_embeddings"] = rope.original_max_position
    if rope.kind == "llama3":
        parameters["low_freq_factor"] = rope.low_freq_factor
        parameters["high_freq_factor"] = rope.high_freq_factor
    if rope.kind == "yarn":
        for name in ("beta_fast", "beta_slow", "truncate"):
            parameters[name] = getattr(rope, name)
        for name in ("attention_factor", "mscale", "mscale_all_dim"):
            if getattr(rope, name) is not None:
                parameters[name] = getattr(rope, name)
    config = LlamaConfig(
        hidden_size=head_dim * 2,
        num_attention_heads=2,
        max_position_embeddings=max_position,
        rope_parameters=parameters,
    )
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(length)[None])
    half = head_dim // 2
    return torch.cat((cos[0, :, :half], sin[0, :, :half]), dim=-1)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("head_dim", [16, 128])
def test_table_equals_transformers(name: str, head_dim: int) -> None:
    length = 4096
    ours = rotary_table(SPECS[name], head_dim, length)
    theirs = hugging_face_table(SPECS[name], head_dim, length, max_position=4096)
    assert torch.equal(ours, theirs)


def test_dynamic_table_beyond_the_original_length_is_the_one_of_the_stretched_length() -> None:
    rope = SPECS["dynamic"]
    ours = rotary_table(rope, 64, 4097)
    # transformers prefills exactly factor x original tokens with one base: the one used here.
    theirs = hugging_face_table(rope, 64, 8192, max_position=4096)
    torch.testing.assert_close(ours, theirs[:4097], rtol=0, atol=1e-3)
    assert torch.equal(ours, rotary_table(rope, 64, 8192)[:4097])
    assert not torch.equal(ours[:4096], rotary_table(rope, 64, 4096))


@pytest.mark.parametrize("name", SPECS)
def test_float64_table_agrees_with_the_float32_one_where_float32_is_exact_enough(name: str) -> None:
    exact = rotary_table(SPECS[name], 64, 100, torch.float64)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact.float(), rotary_table(SPECS[name], 64, 100), rtol=0, atol=1e-4)


def test_half_precision_models_get_a_float32_table() -> None:
    assert rotary_table(RopeSpec(), 8, 4, torch.bfloat16).dtype == torch.float32


def test_odd_head_is_refused() -> None:
    with pytest.raises(ValueError, match="even head_dim, got 7"):
        rotary_table(RopeSpec(), 7, 4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_without_rotary_embedding_nothing_turns(dtype: torch.dtype) -> None:
    table = rotary_table(None, 8, 50, dtype)
    assert table.shape == (50, 8)
    assert table.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    heads = torch.randn(5, 3, 8).to(dtype)
    turned, positions = heads.clone(), torch.tensor([0, 49, 7, 7, 1])
    TorchOps().rotary_(turned, positions, table)
    assert torch.equal(turned, heads)
    if why_not_native(dtype=dtype) is None:
        native = heads.clone()
        native_ops().rotary_(native, positions, table)
        assert torch.equal(native, heads)


def test_a_decoder_makes_equal_tables_once() -> None:
    mixer = AttentionSpec(4, 2, 8)
    mixers = (mixer, replace(mixer, rope=RopeSpec()), replace(mixer, rope=None), mixer)
    layers = tuple(LayerSpec(each, FeedForwardSpec(8)) for each in mixers)
    spec = ModelSpec("made", 7, 8, layers, 1e-5, 64, tie_embeddings=True)
    decoder = Decoder(spec, random_weights(spec, torch.float32), TorchOps(), max_position=20)
    tables = [layer.mixer.cos_sin for layer in decoder.layers]  # type: ignore[attr-defined]
    assert tables[0] is tables[1] is tables[3] and tables[2] is not tables[0]
    assert {table.shape for table in tables} == {(20, 8)}


def test_without_rotary_embedding_heads_are_still_even() -> None:
    with pytest.raises(ValueError, match="needs an even head_dim, got 5"):
        rotary_table(None, 5, 50)
