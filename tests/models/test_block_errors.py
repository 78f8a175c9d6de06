"""Mistakes in blocks and formats of a user's own are answered with a sentence that says which."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from minserve.kernels.matrix import Matrix, PackedShape
from minserve.models import random_weights
from minserve.models.blocks import AttentionSpec, BlockReader, FeedForwardSpec
from minserve.models.blocks.base import held_bytes
from minserve.quantization.formats import DENSE, FORMATS, DenseFormat, FormatPlan
from minserve.spec import LayerSpec, ModelSpec, Projection

LAYER = LayerSpec(AttentionSpec(4, 2, 8), FeedForwardSpec(48))
SPEC = ModelSpec("made", 97, 32, (LAYER, LAYER), 1e-5, 64, tie_embeddings=False)
INT8 = FORMATS["int8"]


def with_block(feed_forward: Any) -> ModelSpec:
    return replace(SPEC, layers=(LAYER, replace(LAYER, feed_forward=feed_forward)))


def test_a_projection_that_is_not_described() -> None:
    class Misnamed(FeedForwardSpec):
        def load(self, reader: BlockReader, hidden_size: int) -> Any:
            return reader.matrix("gate", "mlp.gate_proj")

    message = r"Misnamed.load reads 'gate', and Misnamed.projections has gate_up, down: give the"
    with pytest.raises(ValueError, match=message):
        random_weights(with_block(Misnamed(48)), torch.float32)


@pytest.mark.parametrize("names", [("mlp.gate_proj",), ("a", "b", "c"), ()])
def test_a_matrix_from_too_many_or_too_few_parts(names: tuple[str, ...]) -> None:
    class Short(FeedForwardSpec):
        def load(self, reader: BlockReader, hidden_size: int) -> Any:
            return reader.matrix("gate_up", *names)

    message = rf"Short.load reads 'gate_up' from {len(names)} stored names, and .* has 2 parts"
    with pytest.raises(ValueError, match=message):
        random_weights(with_block(Short(48)), torch.float32)


def test_two_blocks_of_a_layer_with_a_projection_of_one_name() -> None:
    class Clashing(FeedForwardSpec):
        def projections(self, hidden_size: int) -> dict[str, Projection]:
            gate_up, down = super().projections(hidden_size).values()
            return {"gate_up": gate_up, "output": down}

    message = r"AttentionSpec and Clashing both have a projection 'output': rename it in one"
    spec = with_block(Clashing(48))
    for ask in (lambda: random_weights(spec, torch.float32), spec.num_parameters):
        with pytest.raises(ValueError, match=message):
            ask()


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"outputs": 63}, "63 outputs and 32 inputs in torch.float32"),
        ({"inputs": 31}, "64 outputs and 31 inputs in torch.float32"),
        ({"dtype": torch.float16}, "64 outputs and 32 inputs in torch.float16"),
        ({"codes": torch.zeros(32, 64)}, r"codes of \[32, 64\]"),
        ({"packing": PackedShape(16)}, r"packing PackedShape\(width=16, depth=1\)"),
    ],
)
def test_a_format_that_makes_another_matrix(changes: dict[str, Any], shown: str) -> None:
    @dataclass(frozen=True)
    class Wrong(DenseFormat):
        name = "wrong"  # type: ignore[misc]

        def load(self, *arguments: Any) -> Matrix:
            return replace(super().load(*arguments), **changes)

    message = rf"the format 'wrong' made a matrix of .*{shown}.*: expected 64 outputs and 32 inputs"
    with pytest.raises(ValueError, match=message):
        random_weights(SPEC, torch.float32, plan=FormatPlan(layers=Wrong()))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((2, "qkv"), "layer 2 of a model of 2 layers: count them from 0"),
        ((-1, "qkv"), "layer -1 of a model of 2 layers"),
        ((0, "qvk"), "'qvk' of layer 0: expected one of qkv, output, gate_up, down"),
    ],
)
def test_an_exception_of_a_plan_for_a_matrix_that_is_not_there(
    place: tuple[int, str], message: str
) -> None:
    with pytest.raises(ValueError, match=f"FormatPlan.exceptions has a format for {message}"):
        random_weights(SPEC, torch.float32, plan=FormatPlan(exceptions={place: INT8}))


def test_an_exception_of_a_plan_for_a_layer_that_shares_weights() -> None:
    spec = replace(SPEC, layers=(LAYER, replace(LAYER, weights_of=0)))
    with pytest.raises(ValueError, match="layer 1, which uses the weights of layer 0: name that"):
        random_weights(spec, torch.float32, plan=FormatPlan(exceptions={(1, "qkv"): INT8}))
    plan = FormatPlan(exceptions={(0, "qkv"): INT8})
    shared = random_weights(spec, torch.float32, plan=plan).layers
    assert shared[1].mixer.qkv.kind == "int8" and shared[1] is shared[0]


def test_a_plan_keeps_the_exceptions_that_it_was_given() -> None:
    given = {(0, "qkv"): INT8}
    plan, same = FormatPlan(exceptions=given), FormatPlan(exceptions=dict(given))
    number = hash(plan)
    given[1, "qkv"] = DENSE
    assert plan == same and hash(plan) == number == hash(same)
    assert plan != FormatPlan(exceptions=given)


def test_weights_in_lists_and_mappings_have_bytes() -> None:
    @dataclass
    class Weights:
        some: Any
        size: int = 7

    one, two = torch.zeros(3), torch.zeros(5)
    for held in ((one, two), [one, two], {"a": one, "b": two}, [Weights([one]), {"b": (two,)}]):
        assert held_bytes(Weights(held)) == 8 * 4
