"""What cannot go together: at least one configuration for every refusal of every rule."""

from __future__ import annotations

from dataclasses import replace

from config.asked import MIXED, MODEL, PAGE_BYTES, WINDOWS, Case

from minserve.config import Facts, OrderTraits
from minserve.config.rules import decoding, device, kernels, memory, scheduling, virtual

MODELLED = Facts(modelled=True, modelled_bytes=1 << 20)
DRAFTS = Facts(proposer="Ngrams")
TREES = Facts(proposer="Heads", proposes_trees=True)
WEIGHTS = MODEL.num_parameters() * 4
STATIC = {"scheduling.policy": "static"}
NO_CACHE = {"memory.kv_cache": False}
NO_CHUNKS = {"scheduling.enable_chunked_prefill": False}
CONTIGUOUS = {"memory.layout": "contiguous"}
GRAPHS = {"kernels.cuda_graphs": True}
COMPILE = {"kernels.compile": True}
TUNE = {"kernels.autotune": True}
SWAP = {"scheduling.preemption": "swap"}
ON_GPU = {"device": "cuda", "memory.kv_bytes": 1 << 24}
TIERS = {"memory.prefix_cache": "hash", "memory.host_bytes": 1 << 20, "memory.disk_bytes": 1 << 20}

REFUSED = [
    Case(device.device_is_there, {"device": "tpu"}, ("EngineConfig.device='tpu'", "expected auto")),
    Case(
        device.device_is_there,
        {"device": "cuda"},
        ("EngineConfig.device='cuda'", "sees no CUDA device", "use device='cpu'"),
    ),
    Case(
        device.device_is_there,
        {"device": "cuda:3"},
        ("EngineConfig.device='cuda:3'", "has 1 CUDA device(s), numbered from 0"),
        gpu=(9, 0),
    ),
    Case(
        virtual.modelled_time_compiles_nothing,
        COMPILE,
        ("kernels.compile=True", "modelled time", "leave it off"),
        facts=MODELLED,
    ),
    Case(
        virtual.modelled_time_captures_nothing,
        GRAPHS,
        ("kernels.cuda_graphs=True", "modelled time", "leave it off"),
        facts=MODELLED,
    ),
    Case(
        virtual.modelled_time_overlaps_nothing,
        {"scheduling.async_scheduling": True},
        ("scheduling.async_scheduling=True", "modelled time", "leave it off"),
        facts=MODELLED,
    ),
    Case(
        virtual.modelled_memory_holds_weights,
        {"memory.gpu_memory_utilization": 0.1},
        (f"{WEIGHTS} bytes of weights", "memory.gpu_memory_utilization=0.1", "raise it"),
        facts=MODELLED,
    ),
    Case(
        scheduling.predictor_is_asked,
        {},
        ("scheduling.order='fcfs'", "predictor", "use scheduling.order='sjf'"),
        facts=Facts(own_predictor=True),
    ),
    Case(
        scheduling.lengths_suit_model,
        {"scheduling.max_model_len": 2048},
        ("scheduling.max_model_len=2048", "1024 positions", "lower it"),
    ),
    Case(
        scheduling.budget_serves_all_running,
        {"scheduling.max_num_batched_tokens": 8},
        ("max_num_batched_tokens=8", "scheduling.max_num_seqs=64", "raise the one or lower"),
    ),
    Case(
        scheduling.budget_holds_whole_requests,
        NO_CACHE | {"scheduling.max_num_batched_tokens": 512},
        ("memory.kv_cache=False", "scheduling.max_num_batched_tokens=512", "raise the budget"),
    ),
    Case(
        scheduling.budget_holds_whole_requests,
        NO_CHUNKS | {"scheduling.max_num_batched_tokens": 512},
        ("scheduling.enable_chunked_prefill=False", "scheduling.max_model_len=1024", "raise the"),
    ),
    *[
        Case(
            scheduling.static_batches_run_to_their_end,
            STATIC | {"scheduling.order": order},
            (f"scheduling.order='{order}'", "scheduling.policy='static'", "order='sjf'"),
        )
        for order in ("priority", "mlfq")
    ],
    Case(
        scheduling.static_batches_run_to_their_end,
        STATIC,
        ("the order Mine", "scheduling.policy='static'", "policy='continuous'"),
        facts=Facts(own_order=OrderTraits("the order Mine", preemptive=True)),
    ),
    Case(
        scheduling.longest_prefix_needs_cache,
        {},
        ("the order Mine", "memory.prefix_cache='off'", "prefix_cache='hash'"),
        facts=Facts(own_order=OrderTraits("the order Mine", needs_prefixes=True)),
    ),
    Case(
        scheduling.predictor_is_asked,
        {"scheduling.order": "sjf"},
        ("the order Mine", "asks no predictor", "give no predictor"),
        facts=Facts(own_predictor=True, own_order=OrderTraits("the order Mine")),
    ),
    Case(
        scheduling.longest_prefix_needs_cache,
        {"scheduling.order": "lpm"},
        ("scheduling.order='lpm'", "memory.prefix_cache='off'", "use prefix_cache='hash'"),
    ),
    *[
        Case(
            scheduling.predicted_lengths_need_sjf,
            {f"scheduling.{name}": 1},
            (f"scheduling.{name}=1", "scheduling.order='fcfs'", "use order='sjf'"),
        )
        for name in ("length_error", "length_bucket")
    ],
    *[
        Case(
            scheduling.prefill_cap_splits_prompts,
            switch | {"scheduling.max_num_prefill_tokens": 64},
            ("scheduling.max_num_prefill_tokens=64", "memory.kv_cache=False", "switch both on"),
        )
        for switch in (NO_CACHE, NO_CHUNKS)
    ],
    Case(
        scheduling.prefill_cap_within_budget,
        {"scheduling.max_num_prefill_tokens": 1024},
        ("max_num_prefill_tokens=1024", "scheduling.max_num_batched_tokens=512", "lower the one"),
    ),
    Case(
        scheduling.overlap_needs_cache,
        NO_CACHE | {"scheduling.async_scheduling": True},
        ("scheduling.async_scheduling=True", "memory.kv_cache=False", "turn the cache on"),
    ),
    Case(
        scheduling.swap_needs_host_memory,
        SWAP,
        ("scheduling.preemption='swap'", "memory.host_bytes=0", "set memory.host_bytes"),
    ),
    *[
        Case(
            scheduling.swap_needs_blocks,
            SWAP | switch | {"memory.host_bytes": 1 << 20},
            ("scheduling.preemption='swap'", f"{path.partition('.')[2]}={value!r}", "use preem"),
        )
        for switch in (CONTIGUOUS, NO_CACHE)
        for path, value in switch.items()
    ],
    Case(
        kernels.native_runs_on_cpu,
        ON_GPU | {"kernels.backend": "native"},
        ("kernels.backend='native'", "device is 'cuda'", "use kernels.backend='auto'"),
        gpu=(9, 0),
    ),
    *[
        Case(
            kernels.compile_takes_torch,
            COMPILE | {"kernels.backend": backend},
            ("kernels.compile=True", f"kernels.backend='{backend}'", "use kernels.backend='auto'"),
        )
        for backend in ("native", "triton")
    ],
    Case(
        kernels.batch_padding_needs_static,
        {"kernels.padding": "batch"},
        ("kernels.padding='batch'", "scheduling.policy='continuous'", "use scheduling.policy="),
    ),
    Case(
        kernels.triton_needs_matrix_units,
        ON_GPU | {"kernels.backend": "triton"},
        ("kernels.backend='triton'", "device='cuda'", "7.5", "use kernels.backend='auto'"),
        gpu=(7, 5),
    ),
    Case(
        kernels.graphs_or_compile,
        GRAPHS | COMPILE,
        ("kernels.cuda_graphs=True", "kernels.compile=True", "use one of the two"),
    ),
    Case(
        kernels.graphs_have_their_padding,
        GRAPHS | {"kernels.padding": "longest"},
        ("kernels.cuda_graphs=True", "kernels.padding='longest'", "use padding='none'"),
    ),
    Case(
        kernels.graphs_need_cache,
        GRAPHS | NO_CACHE,
        ("kernels.cuda_graphs=True", "memory.kv_cache=False", "turn the cache on"),
    ),
    Case(
        kernels.graphs_need_lengths_on_device,
        GRAPHS | {"kernels.backend": "native"},
        ("kernels.cuda_graphs=True", "kernels.backend='native'", "use kernels.backend='auto'"),
    ),
    Case(
        kernels.graphs_capture_triton,
        ON_GPU | GRAPHS | {"kernels.backend": "torch"},
        ("kernels.cuda_graphs=True", "kernels.backend='torch'", "use kernels.backend='auto'"),
        gpu=(9, 0),
    ),
    Case(
        kernels.graphs_capture_triton,
        ON_GPU | GRAPHS,
        ("kernels.cuda_graphs=True", "device='cuda'", "use cuda_graphs=False"),
        gpu=(7, 5),
    ),
    Case(
        kernels.tuning_times_a_gpu,
        TUNE,
        ("kernels.autotune=True", "device='cpu'", "use autotune=False"),
    ),
    *[
        Case(
            kernels.tuning_times_triton,
            ON_GPU | TUNE | values,
            ("kernels.autotune=True", said, "use autotune=False"),
            gpu=gpu,
            facts=Facts(operators=operators),
        )
        for values, said, gpu, operators in [
            ({"kernels.backend": "torch"}, "kernels.backend='torch'", (9, 0), None),
            (COMPILE, "compile=True", (9, 0), None),
            ({}, "device='cuda' is below compute capability 8.0", (7, 5), None),
            ({"dtype": "float64"}, "torch operators run here, in torch.float64", (9, 0), "torch"),
        ]
    ],
    Case(
        kernels.compile_needs_compiler,
        COMPILE,
        ("kernels.compile=True", "there is none: install one", "use compile=False"),
        facts=Facts(why_no_compiler=lambda: "there is none: install one"),
    ),
    Case(
        memory.sharing_needs_paging,
        CONTIGUOUS | {"memory.prefix_cache": "radix"},
        ("memory.prefix_cache='radix'", "memory.layout='contiguous'", "use memory.layout='paged'"),
    ),
    *[
        Case(
            memory.managing_needs_cache,
            NO_CACHE | switch,
            ("memory.kv_cache=False", f"{path}='{value}'", "turn the cache on"),
        )
        for switch in (CONTIGUOUS, {"memory.prefix_cache": "hash"})
        for path, value in switch.items()
    ],
    Case(
        memory.host_memory_has_a_use,
        {"memory.host_bytes": 1 << 20},
        ("memory.host_bytes=1048576", "memory.prefix_cache='hash'", "scheduling.preemption="),
    ),
    Case(
        memory.disk_lies_below_host,
        {"memory.disk_bytes": 1 << 20, "memory.prefix_cache": "hash"},
        ("memory.disk_bytes=1048576", "set memory.host_bytes and memory.prefix_cache"),
    ),
    Case(
        memory.neighbours_keep_everything,
        CONTIGUOUS,
        ("memory.layout='contiguous'", "a window of 48", "'paged'", "scheduling.max_model_len=48"),
        model=MIXED,
    ),
    Case(
        memory.tree_keeps_everything,
        {"memory.prefix_cache": "radix"},
        ("memory.prefix_cache='radix'", "a window of 48", "'hash'", "scheduling.max_model_len=48"),
        model=WINDOWS,
    ),
    Case(
        memory.tiers_hold_one_group,
        TIERS | {"memory.disk_bytes": 0},
        ("memory.host_bytes=1048576", "memory.prefix_cache='hash'", "several kinds", "use 0"),
        model=MIXED,
    ),
    Case(
        memory.tiers_hold_one_group,
        TIERS | SWAP,
        ("memory.disk_bytes=1048576", "memory.prefix_cache='hash'", "freed from", "use 0"),
        model=WINDOWS,
    ),
    Case(
        memory.host_holds_a_block,
        TIERS | {"memory.host_bytes": 100},
        ("memory.host_bytes=100 holds no page", f"{PAGE_BYTES} bytes", "raise it, or say 0"),
    ),
    Case(
        decoding.drafts_need_cache,
        NO_CACHE,
        ("EngineParts(proposer=Ngrams)", "memory.kv_cache=False", "turn the cache on"),
        facts=DRAFTS,
    ),
    Case(
        decoding.drafts_need_a_model,
        {},
        ("EngineParts(proposer=Ngrams)", "modelled time", "pass no proposer"),
        facts=replace(DRAFTS, modelled=True, modelled_bytes=1 << 20),
    ),
    Case(
        decoding.trees_need_distances,
        {},
        ("EngineParts(proposer=Heads)", "sliding window of 48 tokens", "propose chains"),
        facts=TREES,
        model=MIXED,
    ),
    Case(
        memory.pool_holds_a_block,
        {"memory.kv_bytes": 100},
        ("memory.kv_bytes=100 holds no page", "memory.block_size=16", "lower block_size"),
    ),
    *[
        Case(
            memory.disk_can_be_written,
            TIERS | {"memory.disk_path": path},
            (
                f"memory.disk_path={path[:20]!r}"[:-1],
                said,
                "name another directory",
                "disk_bytes=0",
            ),
        )
        for path, said in [
            (__file__, "is no directory"),
            (f"{__file__}/below", "Not a directory"),
            ("/" + "n" * 5000, "name too long"),
        ]
    ],
]
