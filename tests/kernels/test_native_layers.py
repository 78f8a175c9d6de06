"""Which layers one call of the native operators takes, and over which pages it runs them.

That it gives the bits of single operators, whatever the layers, is tested with whole decoders in
tests/models/test_stack.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from kernels.test_native import each_dtype, poisoned_memory
from kernels.test_native_edges import spread
from kernels.test_native_products import made
from torch import Tensor

from minserve.kernels import TorchOps, why_not_native
from minserve.kernels.base import (
    AttentionTensors,
    GatedTensors,
    LayerStack,
    LayerTensors,
    PlannedAttention,
    Scores,
)
from minserve.kernels.cpu.native import native_ops
from minserve.kernels.reference.attention import accumulation_dtype

pytestmark = pytest.mark.skipif(why_not_native() is not None, reason=str(why_not_native()))
__all__ = ["poisoned_memory"]

HIDDEN, INNER, HEAD_DIM = 40, 64, 16
CONTEXTS, ROWS = (9, 30), (1, 5)
POSITIONS = torch.tensor([8, 25, 26, 27, 28, 29])


def layer(
    dtype: torch.dtype, kinds: str, heads: int, kv_heads: int, scores: Scores
) -> LayerTensors:
    """Random tensors; `kinds` are those of the four matrices, "d" or "i"."""
    ops = native_ops()

    def product(kind: str, outputs: int, inputs: int) -> Any:
        name = {"d": "dense", "i": "int8"}[kind]
        matrix = made(name, outputs, inputs, dtype, size=inputs**-0.5)
        return ops.product(matrix.packed(ops.packing(name, dtype)))

    def norm(size: int) -> Tensor:
        return (torch.rand(size) + 0.5).to(dtype)

    attended = heads * HEAD_DIM
    mixer = AttentionTensors(
        qkv=product(kinds[0], attended + 2 * kv_heads * HEAD_DIM, HIDDEN),
        output=product(kinds[1], HIDDEN, attended),
        q_norm=norm(HEAD_DIM),
        k_norm=norm(HEAD_DIM),
        cos_sin=torch.rand(64, HEAD_DIM).to(accumulation_dtype(dtype)),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=HEAD_DIM,
        scores=scores,
        eps=1e-3,
    )
    gated = GatedTensors(
        product(kinds[2], 2 * INNER, HIDDEN), product(kinds[3], HIDDEN, INNER), "gelu_tanh"
    )
    norms = [norm(HIDDEN) for _ in range(4)]
    return LayerTensors(norms[0], mixer, norms[1], norms[2], gated, norms[3], 1e-2, 0.5)


@dataclass
class Pages:
    """The pages, slots and tables of one cache group."""

    keys: Tensor
    values: Tensor
    tables: Tensor
    slots: Tensor
    planned: PlannedAttention


def pages(dtype: torch.dtype, kv_heads: int, block_size: int) -> Pages:
    per_request = -(-64 // block_size)
    tables = torch.randperm(2 * per_request).to(torch.int32).view(2, per_request)
    keys, values = torch.randn(2, 2 * per_request, kv_heads, block_size, HEAD_DIM).to(dtype)
    owners = torch.tensor([0, 1, 1, 1, 1, 1])
    blocks = tables[owners, POSITIONS // block_size].long()
    starts = torch.tensor([0, 1, 6], dtype=torch.int32)
    lens = torch.tensor(CONTEXTS, dtype=torch.int32)
    planned = native_ops().plan_attention(tables, starts, lens, ROWS, CONTEXTS)
    return Pages(keys, values, tables, blocks * block_size + POSITIONS % block_size, planned)


def one_by_one(h: Tensor, layers: list[LayerTensors], groups: list[Pages]) -> Tensor:
    """What a decoder's Python does with these layers, each with pages of its own."""
    ops, h, delta = native_ops(), h.clone(), None
    for each, group in zip(layers, groups, strict=True):
        mixer = each.mixer
        if delta is None:
            x = ops.rms_norm(h, each.input_norm, each.eps)
        else:
            x = ops.add_rms_norm(delta, h, each.input_norm, each.eps)
        heads = mixer.qkv.apply(x).view(len(h), -1, HEAD_DIM)
        ops.rotary_store_(
            heads, POSITIONS, mixer.cos_sin, group.keys, group.values, group.slots,
            mixer.q_norm, mixer.k_norm, mixer.eps,
        )  # fmt: skip
        q = heads[:, : mixer.num_heads]
        attended, _ = group.planned(q, group.keys, group.values, mixer.scores)
        x = mixer.output.apply(attended.flatten(1))
        assert each.mixer_norm is not None and each.feed_forward_norm is not None
        x = ops.rms_norm(x, each.mixer_norm, each.eps).mul_(each.residual_multiplier)
        x = ops.add_rms_norm(x, h, each.post_norm, each.eps)
        gated = each.feed_forward
        x = gated.down.apply(gated.gate_up.apply_gated(x, gated.activation))
        delta = ops.rms_norm(x, each.feed_forward_norm, each.eps).mul_(each.residual_multiplier)
    return h if delta is None else h.add_(delta)


def run(stack: LayerStack, h: Tensor, own: list[Pages], **changed: Any) -> float | None:
    """Layer i has pages of its own, `own[i]`."""
    arguments: dict[str, Any] = {
        "positions": POSITIONS,
        "caches": [(group.keys, group.values) for group in own],
        "groups": list(range(len(own))),
        "slots": [group.slots for group in own],
        "planned": [group.planned for group in own],
        "start": 0,
        "stop": len(own),
    }
    return stack.run(h, **{**arguments, **changed})


@each_dtype
def test_layers_of_other_shapes_and_pages_run_in_one_call(dtype: torch.dtype) -> None:
    """Each has its own heads, window, soft cap and page size; a call may begin at any of them."""
    ops = native_ops()
    kinds = ("dddd", "iiii", "diid") if ops.packing("dense", dtype) else ("iiii",) * 3
    layers = [
        layer(dtype, kinds[0], 4, 2, Scores(0.25)),
        layer(dtype, kinds[1], 3, 3, Scores(0.5, window=4)),
        layer(dtype, kinds[2], 8, 1, Scores(0.25, softcap=1.5)),
    ]
    groups = [pages(dtype, 2, 16), pages(dtype, 3, 4), pages(dtype, 1, 32)]
    stack = ops.layer_stack([None, *layers, None])
    assert stack is not None and list(stack.takes) == [False, True, True, True, False]
    rows = torch.randn(6, HIDDEN).to(dtype)
    for first, last in ((0, 3), (1, 3), (1, 2)):
        part = slice(first, last)
        copies = [
            replace(each, keys=each.keys.clone(), values=each.values.clone()) for each in groups
        ]
        expected = one_by_one(rows, layers[part], copies[part])
        h = rows.clone()
        outer = [groups[0], *groups, groups[0]]
        mine = run(stack, h, outer, start=first + 1, stop=last + 1)
        assert mine is not None and mine > 0
        assert torch.equal(h, expected)
        for group, copy in zip(groups, copies, strict=True):
            assert torch.equal(group.keys, copy.keys) and torch.equal(group.values, copy.values)


def changed_product(part: str, change: Callable[[Any], Any]) -> Callable[[LayerTensors], Any]:
    def changed(each: LayerTensors) -> LayerTensors:
        gated = each.feed_forward
        return replace(each, feed_forward=replace(gated, **{part: change(getattr(gated, part))}))

    return changed


def biased(product: Any) -> Any:
    return native_ops().product(product.matrix.with_bias(torch.zeros(product.matrix.outputs)))


def unpacked(product: Any) -> Any:
    return native_ops().product(
        made("dense", product.matrix.outputs, product.matrix.inputs, torch.float32)
    )


def narrower(product: Any) -> Any:
    return native_ops().product(product.matrix.part(0, 32))


REFUSED: dict[str, Callable[[LayerTensors], Any]] = {
    "no form": lambda each: None,
    "a gate with a bias": changed_product("gate_up", biased),
    "a matrix that is not packed": changed_product("down", unpacked),
    "a matrix of another shape": changed_product("gate_up", narrower),
    "a norm of another type": lambda each: replace(each, post_norm=each.post_norm.double()),
    "a table of another type": lambda each: replace(
        each, mixer=replace(each.mixer, cos_sin=each.mixer.cos_sin.double())
    ),
    "one head norm": lambda each: replace(each, mixer=replace(each.mixer, k_norm=None)),
    "a norm of another size": lambda each: replace(each, input_norm=torch.ones(HIDDEN + 1)),
    "a norm that does not lie flat": lambda each: replace(each, post_norm=spread(each.post_norm)),
    "a table that does not lie flat": lambda each: replace(
        each, mixer=replace(each.mixer, cos_sin=spread(each.mixer.cos_sin))
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_what_no_call_takes(reason: str) -> None:
    plain = layer(torch.float32, "dddd", 4, 2, Scores(0.25))
    refused = REFUSED[reason](plain)
    stack = native_ops().layer_stack([plain, refused, plain])
    assert stack is not None and list(stack.takes) == [True, False, True]
    assert native_ops().layer_stack([refused, None]) is None
    assert native_ops().layer_stack([]) is None


@pytest.mark.parametrize(("start", "stop"), [(0, 3), (1, 2), (0, 2), (2, 2), (2, 1)])
def test_layers_that_are_not_taken_are_not_run(start: int, stop: int) -> None:
    plain = layer(torch.float32, "dddd", 4, 2, Scores(0.25))
    stack = native_ops().layer_stack([plain, None, plain])
    assert stack is not None
    h = torch.randn(6, HIDDEN)
    before = h.clone()
    with pytest.raises(ValueError, match=rf"layers {start} to {stop} cannot run in one call: name"):
        run(stack, h, [pages(torch.float32, 2, 16) for _ in range(3)], start=start, stop=stop)
    assert torch.equal(h, before)


def test_a_bias_elsewhere_is_taken() -> None:
    plain = layer(torch.float32, "dddd", 4, 2, Scores(0.25))
    stack = native_ops().layer_stack([changed_product("down", biased)(plain)])
    assert stack is not None and list(stack.takes) == [True]


def test_a_batch_that_cannot_run_is_left_as_it_is() -> None:
    dtype = torch.float32
    stack = native_ops().layer_stack([layer(dtype, "dddd", 4, 2, Scores(0.25))])
    assert stack is not None
    group = pages(dtype, 2, 16)
    rows = torch.randn(6, HIDDEN)
    turned = group.keys.transpose(2, 3).contiguous().transpose(2, 3)
    starts = torch.tensor([0, 1, 6], dtype=torch.int32)
    lens = torch.tensor(CONTEXTS, dtype=torch.int32)
    other_plan = TorchOps().plan_attention(group.tables, starts, lens, ROWS, CONTEXTS)
    before = group.keys.clone()
    for changed in (
        {"caches": [(turned, group.values)]},
        {"caches": [(turned, turned)]},
        {"caches": [(group.keys.double(), group.values.double())]},
        {"caches": [(group.keys[:, :1], group.values[:, :1])]},
        {"slots": [group.slots.int()]},
        {"slots": [group.slots[:5]]},
        {"slots": [spread(group.slots)]},
        {"positions": POSITIONS.int()},
        {"positions": POSITIONS[:5]},
        {"positions": spread(POSITIONS)},
        {"caches": [(group.keys, group.values[:-1])]},
        {"planned": [other_plan]},
    ):
        h = rows.clone()
        assert run(stack, h, [group], **changed) is None
        assert torch.equal(h, rows)
    for h in (rows.double(), rows.T.contiguous().T, rows[:5], rows[:, :-1].contiguous()):
        assert run(stack, h, [group]) is None
    fewer = {"positions": POSITIONS[:5], "slots": [group.slots[:5]]}
    assert run(stack, rows[:5].clone(), [group], **fewer) is None, "the plan has six rows"
    assert torch.equal(group.keys, before)
    assert run(stack, rows.clone(), [group]) is not None


def test_pages_of_another_engine_are_run_in_their_own_groups() -> None:
    """The same layers over two caches of their own, then over two that share tables and slots."""
    layers = [layer(torch.float32, "dddd", 4, 2, Scores(0.25)) for _ in range(2)]
    stack = native_ops().layer_stack(layers)
    assert stack is not None
    first, second = pages(torch.float32, 2, 16), pages(torch.float32, 2, 16)
    together = replace(first, keys=second.keys.clone(), values=second.values.clone())
    rows = torch.randn(6, HIDDEN)
    for own, groups in (([first, second], [0, 1]), ([first, together], [0, 0])):
        expected, h = one_by_one(rows, layers, own), rows.clone()
        named = [own[index] for index in sorted(set(groups))]
        shared = {"slots": [each.slots for each in named], "groups": groups}
        planned = [each.planned for each in named]
        assert run(stack, h, own, planned=planned, **shared) is not None
        assert torch.equal(h, expected)


def test_a_tree_is_refused_where_a_layer_of_the_call_has_a_window() -> None:
    dtype = torch.float32
    scores = Scores(0.25), Scores(0.25, window=6)
    stack = native_ops().layer_stack([layer(dtype, "dddd", 4, 2, each) for each in scores])
    assert stack is not None
    groups = [pages(dtype, 2, 16), pages(dtype, 2, 16)]
    starts = torch.tensor([0, 1, 6], dtype=torch.int32)
    lens = torch.tensor(CONTEXTS, dtype=torch.int32)
    tree = torch.tensor([-1, 1, 3, 5, 9, 17])
    planned = [
        native_ops().plan_attention(group.tables, starts, lens, ROWS, CONTEXTS, tree)
        for group in groups
    ]
    rows = torch.randn(6, HIDDEN)
    h = rows.clone()
    with pytest.raises(ValueError, match=r"tree mask in a layer with a sliding window of 6 tok"):
        run(stack, h, groups, planned=planned)
    assert torch.equal(h, rows)
    assert run(stack, h, groups, planned=planned, stop=1) is not None
