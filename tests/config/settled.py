"""What is left open: at least one configuration for every rule that fills in a value or says so."""

from __future__ import annotations

from config.asked import MIXED, PAGE_BYTES, Case
from config.refused import (
    COMPILE,
    CONTIGUOUS,
    DRAFTS,
    GRAPHS,
    MODELLED,
    NO_CACHE,
    ON_GPU,
    STATIC,
    WEIGHTS,
)

from minserve.config.rules import decoding, device, kernels, memory, scheduling, virtual

SETTLED = [
    Case(device.device_is_there, {"device": "auto"}, fills={"device": "cuda"}, gpu=(9, 0)),
    Case(
        device.dtype_suits_device,
        {"device": "cuda", "dtype": "auto"},
        ("dtype: float16, because this GPU has no bfloat16",),
        {"dtype": "float16"},
        gpu=(7, 5),
    ),
    Case(
        virtual.modelled_memory_holds_weights,
        {"memory.gpu_memory_utilization": 0.5},
        fills={"memory.kv_bytes": (1 << 19) - WEIGHTS},
        facts=MODELLED,
    ),
    Case(
        decoding.drafts_wait_for_tokens,
        {"scheduling.async_scheduling": True},
        ("scheduling.async_scheduling overlaps only steps that draw no token", "Ngrams"),
        facts=DRAFTS,
    ),
    Case(scheduling.lengths_suit_model, {}, fills={"scheduling.max_model_len": 1024}),
    Case(
        scheduling.budget_by_default,
        {"scheduling.max_num_seqs": 600},
        fills={"scheduling.max_num_batched_tokens": 600},
    ),
    Case(
        scheduling.budget_by_default,
        NO_CACHE,
        ("scheduling.max_num_batched_tokens: 1024, so that a request of max_model_len fits",),
        {"scheduling.max_num_batched_tokens": 1024},
    ),
    Case(
        scheduling.starvation_limit_by_default,
        {"scheduling.order": "mlfq"},
        ("scheduling.starvation_limit_s: 30, because scheduling.order='mlfq'",),
        {"scheduling.starvation_limit_s": 30.0},
    ),
    Case(
        kernels.compile_takes_torch,
        COMPILE,
        ("kernels.backend: torch, because kernels.compile=True",),
        {"kernels.backend": "torch"},
    ),
    Case(
        kernels.padding_takes_a_block,
        {"kernels.padding": "longest"},
        ("kernels.padding='longest': a page beside memory.kv_bytes",),
    ),
    Case(
        kernels.triton_needs_matrix_units,
        ON_GPU,
        ("kernels.backend: torch, because this GPU has compute capability 7.5",),
        gpu=(7, 5),
    ),
    Case(
        kernels.graphs_on_a_cpu,
        GRAPHS,
        ("a page beside memory.kv_bytes", "a CPU captures nothing", "kernels.backend: torch"),
        {"kernels.backend": "torch"},
    ),
    Case(kernels.graphs_on_a_cpu, ON_GPU | GRAPHS, ("a page beside memory.kv_bytes",), gpu=(9, 0)),
    *[
        Case(
            memory.samples_share_blocks,
            switch,
            (f"memory.copy_on_write: off, because {path}={value!r}",),
            {"memory.copy_on_write": False},
        )
        for switch in (NO_CACHE, CONTIGUOUS, STATIC)
        for path, value in switch.items()
    ],
    Case(
        memory.tiers_hold_one_group,
        {
            "memory.prefix_cache": "hash",
            "memory.host_bytes": 1 << 20,
            "scheduling.preemption": "swap",
        },
        ("memory.host_bytes: holds preempted requests only", "memory.prefix_cache='hash'"),
        model=MIXED,
    ),
    Case(
        memory.pool_by_default,
        {"scheduling.max_num_seqs": 2},
        fills={"memory.kv_bytes": 2 * 64 * PAGE_BYTES},
    ),
]
