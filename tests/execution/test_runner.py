"""What a runner refuses on the host, before a batch is on its way to a device."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from attention.test_paged import make_batch

from minserve.clock import WallClock
from minserve.execution.runner import EagerRunner


def test_a_tree_of_too_many_rows_is_refused_before_it_is_sent() -> None:
    """On a device the masks would not be read: the host would have to wait for them."""
    decoder: Any = SimpleNamespace(ops=SimpleNamespace(sample_kernel=None))
    runner = EagerRunner(decoder, cast(Any, None), torch.device("cpu"), WallClock(), 16)

    def upload(batch: Any) -> Any:
        raise AssertionError("the batch was sent")

    runner._link = cast(Any, SimpleNamespace(upload=upload))
    batch = make_batch((64, 2), (70, 6), 0)
    with pytest.raises(
        ValueError, match=r"request 0 .* a tree of 64 rows, .* bits for 63: propose"
    ):
        runner.submit(replace(batch, tree=torch.ones(66, dtype=torch.int64)))
    plain = torch.tensor([*[-1] * 64, 1, 2])
    for tree in (None, plain):
        with pytest.raises(AssertionError, match="the batch was sent"):
            runner.submit(replace(batch, tree=tree))
