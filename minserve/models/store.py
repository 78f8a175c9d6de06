"""Engines with the same model share one copy of its weights, for as long as any of them is alive.

Only weak references are kept: the store itself keeps no weight in memory, so it needs no limit, no
eviction and no clean-up.
"""

from __future__ import annotations

import threading
from pathlib import Path
from weakref import WeakValueDictionary

import torch

from minserve.kernels.matrix import PackedShape
from minserve.models.errors import ModelError
from minserve.models.loading.checkpoint import load_weights
from minserve.models.loading.checkpoint_files import checkpoint_files
from minserve.models.loading.hub import resolve_model
from minserve.models.weights import DecoderWeights, Packing, unpacked
from minserve.quantization.formats import DENSE_PLAN, FormatPlan
from minserve.spec import ModelSpec

_Key = tuple[
    Path,
    tuple[tuple[str, int, int], ...],
    ModelSpec,
    torch.dtype,
    torch.device,
    FormatPlan,
    frozenset[tuple[str, PackedShape | None]],
]


class WeightStore:
    """Weights by their source: real path, sizes and times of the files, spec, number format,
    device, weight formats and packing. A file that changes on disk is another model."""

    def __init__(self) -> None:
        self._live: WeakValueDictionary[_Key, DecoderWeights] = WeakValueDictionary()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of distinct weights alive."""
        return len(self._live)

    def load(
        self,
        model: str | Path,
        spec: ModelSpec,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        progress: bool = True,
        plan: FormatPlan = DENSE_PLAN,
        packing: Packing = unpacked,
    ) -> DecoderWeights:
        """`load_weights`, or the copy that another engine already holds.

        If two threads load the same model at once, they get one copy: the second waits.
        """
        directory = resolve_model(model).resolve()
        where = torch.device(device)
        if where.type == "cuda" and where.index is None:
            where = torch.device("cuda", torch.cuda.current_device())
        stamps = []
        for path in checkpoint_files(directory):
            try:
                status = path.stat()
            except OSError as error:
                raise ModelError(f"{path} cannot be read: {error.strerror}.") from None
            stamps.append((path.name, status.st_size, status.st_mtime_ns))
        packed = frozenset((each.kind, packing(each.kind, dtype)) for each in plan.formats)
        key = (directory, tuple(stamps), spec, dtype, where, plan, packed)
        with self._lock:
            weights = self._live.get(key)
            if weights is None:
                weights = load_weights(directory, spec, dtype, where, progress, plan, packing)
                self._live[key] = weights
            return weights


default_store = WeightStore()
"""The store that all engines of a process share. It holds weak references only."""
