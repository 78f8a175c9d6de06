"""A tied table in eight bits: what is looked up and what is multiplied are the same numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from minserve.kernels import select_ops
from minserve.models import Decoder, random_weights
from minserve.models.blocks import AttentionSpec, FeedForwardSpec
from minserve.quantization.formats import FORMATS, FormatPlan
from minserve.spec import LayerSpec, ModelSpec

INT8 = FORMATS["int8"]
LAYER = LayerSpec(AttentionSpec(4, 2, 8), FeedForwardSpec(48))
VOCAB, HIDDEN = 97, 33


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_a_head_in_eight_bits(tied: bool, dtype: torch.dtype, backend: str) -> None:
    spec = ModelSpec("made", VOCAB, HIDDEN, (LAYER,), 1e-5, 64, tied, embedding_multiplier=2.0)
    ops, plan = select_ops(backend, torch.device("cpu"), dtype), FormatPlan(head=INT8)
    weights = random_weights(spec, dtype, plan=plan, packing=ops.packing)
    canonical = random_weights(spec, dtype, plan=plan)
    numbers = canonical.head.dequantised()
    assert weights.head.kind == "int8" and weights.tied == tied
    table = weights.embedding.table
    assert table.kind == ("int8" if tied else "dense")
    assert (table is weights.head) == tied
    assert tied or table.packing is None, "rows that are looked up are contiguous"
    decoder = Decoder(spec, weights, ops)
    tokens = torch.tensor([0, 96, 5, 5, 31, 64])
    stored = numbers if tied else canonical.embedding.table.dequantised()
    assert torch.equal(decoder.embed(tokens), stored[tokens] * 2)
    h = torch.randn(6, HIDDEN, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = weights.final_norm.apply(ops, h)
    expected = F.linear(x.double(), numbers.double())
    limit = {torch.float32: 1e-5, torch.float64: 1e-12}.get(dtype, 1e-2)
    error = (decoder.head(h).double() - expected).abs().max()
    assert error < limit * expected.abs().max()
