"""The section of `EngineConfig` about keys and values: pages, sharing, tiers."""

from __future__ import annotations

from dataclasses import dataclass

from minserve.config.knobs import Section, knob


@dataclass(frozen=True)
class MemoryConfig(Section):
    """Where keys and values live between steps."""

    kv_cache: bool = knob(
        True,
        "Keep keys and values of computed tokens; off, every step computes all tokens again.",
        trade_off="memory that grows with every token, against arithmetic that grows with its "
        "square",
        survey="2.1",
    )
    block_size: int = knob(
        16,
        "Tokens per page of the KV cache.",
        unit="tokens",
        trade_off="small pages waste less at the end of a sequence, large ones need shorter "
        "block tables and longer contiguous reads",
        survey="4.2.3",
        at_least=1,
        at_most=1024,
    )
    kv_bytes: int | None = knob(
        None,
        "Size of the page pool. None: on a GPU what a profile run leaves free; on a CPU enough "
        "for max_num_seqs requests of max_model_len tokens, at most an eighth of the memory.",
        unit="bytes",
        trade_off="a small pool preempts, a large one takes memory from everything else",
        survey="4.2.3",
        at_least=1,
    )
    gpu_memory_utilization: float = knob(
        0.9,
        "Share of the GPU's memory the engine may use, weights and activations included; read "
        "only where kv_bytes is None.",
        unit="fraction",
        trade_off="room for longer batches against room for other programs",
        survey="4.2.3",
        at_least=0.05,
        at_most=0.99,
    )
    watermark: float = knob(
        0.01,
        "Share of the pages that must stay free when a waiting request is admitted.",
        unit="fraction",
        trade_off="fewer preemptions right after an admission against a few idle pages",
        survey="4.2.3",
        at_least=0.0,
        at_most=0.5,
    )
    layout: str = knob(
        "paged",
        "paged: a request gets a page when it needs one (PagedAttention). contiguous: at admission "
        "it gets neighbouring pages for all tokens it may reach; memory.reservation says how many.",
        trade_off="paging wastes at most a page per request and needs a block table; reserving "
        "keeps memory for tokens that may never come",
        survey="4.2.3",
        choices=("paged", "contiguous"),
    )
    reservation: str = knob(
        "max_model_len",
        "What a contiguous request reserves. max_model_len: that many tokens. power_of_two: its "
        "prompt, and its output rounded up to a power of two. oracle: exactly the tokens it may "
        "reach.",
        trade_off="a safe guess of the length against memory held for nothing",
        survey="4.2.3",
        choices=("max_model_len", "power_of_two", "oracle"),
    )
    copy_on_write: bool = knob(
        True,
        "Samples of one prompt share the pages of the prompt; a shared page is copied before a "
        "sample writes into it.",
        trade_off="the prompt is computed and stored once; other samples start when the first has "
        "computed it",
        survey="4.2.3",
    )
    prefix_cache: str = knob(
        "off",
        "Keep pages of finished requests for later ones that begin with the same tokens. hash: "
        "whole pages, by chain hash (vLLM). radix: a tree over tokens, which also serves a part of "
        "a page (RadixAttention).",
        trade_off="prompts that share a prefix start at once; looking it up costs time, and "
        "nothing is gained where no two prompts agree",
        survey="4.2.3",
        choices=("off", "hash", "radix"),
    )
    host_bytes: int = knob(
        0,
        "Host memory for pages of swapped-out requests, and for cached pages that the device "
        "evicted. 0: none.",
        unit="bytes",
        trade_off="a load over the bus instead of computing again, against memory",
        survey="4.2.3",
        at_least=0,
    )
    disk_bytes: int = knob(
        0,
        "Files for cached pages that the host evicted, under memory.disk_path. 0: none.",
        unit="bytes",
        trade_off="room for days of idle conversations, read back at the speed of a disk",
        survey="4.2.3",
        at_least=0,
    )
    disk_path: str | None = knob(
        None,
        "Directory for memory.disk_bytes. None: the system's directory for temporary files.",
        trade_off="a fast disk makes loading pay off for shorter prefixes",
    )
    resume: str = knob(
        "auto",
        "How a prefix that only the host or the disk has is brought back: load its pages, "
        "recompute its tokens, or auto: the faster of the two, as this run measured them.",
        trade_off="bytes over a bus against arithmetic: which takes less time depends on the "
        "machine and on the length",
        survey="4.2.3",
        choices=("auto", "load", "recompute"),
    )
    check_integrity: bool = knob(
        False,
        "After every step, verify that free and owned pages add up and nothing is owned twice.",
        trade_off="certainty against a few microseconds per page and step",
    )
