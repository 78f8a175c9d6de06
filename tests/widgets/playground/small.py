"""Comparisons small enough for a test that really runs them."""

from __future__ import annotations

from minserve.bench.compare.setup import Setup, Variant
from minserve.bench.compare.workload import Workload

# What runs is not the playground's concern, and a first use of native code compiles it.
BASE = {"kernels.backend": "torch", "dtype": "float32", "memory.kv_bytes": 2 << 20,
        "scheduling.max_num_seqs": 4, "scheduling.max_model_len": 64}  # fmt: skip
FEW = Workload(
    "independent", {"count": 6, "prompt": 6, "output": 6, "rate": 0.0, "lengths": "uniform"}
)
STATIC = Variant("static", {"scheduling.policy": "static"})
ONE = Variant("one by one", {"scheduling.max_num_seqs": 1})
RADIX = Variant("radix", {"memory.prefix_cache": "radix"})
HERE = Setup(base=BASE, variants=(STATIC,), workload=FEW, headline="steps")
FOUR = Setup(base=BASE, variants=(STATIC, ONE, RADIX), workload=FEW, clock="virtual")
