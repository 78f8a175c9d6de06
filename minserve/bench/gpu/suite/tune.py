"""Tiles of attention for the suite's models, timed on this GPU and kept on its disk.

Needed once per GPU, version of Triton and source of the kernels; other parts then run with
`kernels.autotune`. Not among the parts that run by default, because it compiles for minutes.
"""

from __future__ import annotations

from dataclasses import asdict

import torch

from minserve.bench.gpu.setting import Setting, is_tuned
from minserve.bench.gpu.suite.stream import SHAPES
from minserve.bench.workloads.shapes import SHAPES as ALL


def run(setting: Setting) -> None:
    """A row per shape: how long tuning took, and the fastest tiles."""
    if setting.dry_run:
        setting.record.skip("tuning: it times kernels, and a CPU interprets them")
        return
    from minserve.kernels.triton.analysis.autotune import tune_model

    for name in SHAPES:
        spec = ALL[name].spec()
        known = is_tuned(setting, spec)
        start = setting.clock.now()
        found = tune_model(spec, getattr(torch, setting.dtype), setting.device)
        setting.record.add(
            {
                "name": name,
                "seconds": setting.clock.now() - start,
                "from_disk": known,
                "ragged": [asdict(tile) for tile in found.ragged.values()],
                "split": [asdict(tile) for tile in found.split.values()],
            }
        )
