"""The section of `EngineConfig` about a step's batch: limits, order, preemption."""

from __future__ import annotations

from dataclasses import dataclass

from minserve.config.knobs import Section, knob


@dataclass(frozen=True)
class SchedulingConfig(Section):
    """Which request computes how many tokens in the next step."""

    max_num_seqs: int = knob(
        64,
        "Most requests that hold a place in the batch at once.",
        unit="requests",
        trade_off="throughput grows with the batch, and so does every request's time per token",
        survey="4.2.4",
        at_least=1,
        at_most=1 << 20,
    )
    max_num_batched_tokens: int | None = knob(
        None,
        "Token budget of one step, prefill and decode together. None: 512, or more where a "
        "request must fit in one step.",
        unit="tokens",
        trade_off="a large budget finishes prompts sooner and delays the tokens of running "
        "requests",
        survey="4.2.4",
        at_least=1,
        at_most=1 << 26,
    )
    max_model_len: int | None = knob(
        None,
        "Longest request, prompt and output together. None: what the model allows.",
        unit="tokens",
        trade_off="long requests hold many pages, for a long time",
        survey="4.2.3",
        at_least=2,
        at_most=1 << 30,
    )
    enable_chunked_prefill: bool = knob(
        True,
        "Split prompts that do not fit into what is left of the step's token budget.",
        trade_off="running requests keep their pace while a long prompt arrives, which then "
        "takes more steps",
        survey="4.2.4",
    )
    max_queued_requests: int | None = knob(
        None,
        "Most requests that may wait beyond the free places in the batch. One that comes when so "
        "many wait is refused at once (QueueFullError; HTTP status 429), and may be sent again "
        "later. Every sample of a prompt counts, preempted requests too. None: no limit.",
        unit="requests",
        trade_off="accepted requests do not wait long, however fast others arrive; the refused "
        "ones get nothing",
        survey="4.2.4",
        at_least=0,
        at_most=1 << 30,
    )
    policy: str = knob(
        "continuous",
        "continuous: a waiting request joins the batch at any step (Orca). static: a batch is "
        "formed when the one before has ended, and no request joins it later.",
        trade_off="static batches are simple and leave the places of finished requests empty",
        survey="4.2.4",
        choices=("continuous", "static"),
    )
    order: str = knob(
        "fcfs",
        "Which request goes first. fcfs: the one that came first. sjf: the one predicted to "
        "generate the fewest tokens. lpm: the one with the longest prefix of its tokens in the "
        "cache. priority: the one with the smallest priority number; it may preempt running "
        "requests. mlfq: the one with the least service so far, in levels; it may preempt running "
        "requests (FastServe).",
        trade_off="short requests stop waiting for long ones, which wait longer and may be "
        "preempted",
        survey="4.2.4",
        choices=("fcfs", "sjf", "lpm", "priority", "mlfq"),
    )
    starvation_limit_s: float | None = knob(
        None,
        "A request that has waited this long, all its waits together, goes before the others; "
        "several of them in order of arrival. None: 30 seconds where the order lets requests "
        "overtake, otherwise no limit.",
        unit="seconds",
        trade_off="a short limit bounds the worst wait and turns every order back into fcfs",
        survey="4.2.4",
        at_least=0.0,
    )
    length_error: float = knob(
        0.0,
        "Makes predicted lengths wrong: standard deviation of the logarithm of prediction over "
        "truth. 0 is an oracle; 0.7 is off by a factor of two or more one time in three. Used "
        "where order is sjf and the caller gives no predictor.",
        trade_off="none: it shows what a better predictor would be worth",
        survey="4.2.4",
        at_least=0.0,
        at_most=20.0,
    )
    length_bucket: int | None = knob(
        None,
        "Width of a bucket of predicted lengths. Lengths in one bucket count as equal, and a "
        "static batch holds requests of one bucket only. None: no buckets. Needs order sjf.",
        unit="tokens",
        trade_off="requests of a static batch end at about the same time, but one of a rare "
        "length waits for others like it, or runs alone",
        survey="4.2.4",
        at_least=1,
        at_most=1 << 30,
    )
    mlfq_quantum: int = knob(
        16,
        "Steps of service in the first level of mlfq; each level below has twice as many.",
        unit="steps",
        trade_off="a small quantum finds the short requests sooner and preempts the others more",
        survey="4.2.4",
        at_least=1,
        at_most=1 << 30,
    )
    prefill: str = knob(
        "mixed",
        "What a step computes where prompts and new tokens compete. mixed: both, in order of the "
        "queue. decode_first: every running request's next token, then prompts with what is left "
        "of the budget. prefill_first: prompts alone, as long as there are any; where the order "
        "preempts, also the rows that rank before them.",
        trade_off="prompts first shortens the time to the first token, decodes first the time "
        "between tokens",
        survey="4.2.4",
        choices=("mixed", "decode_first", "prefill_first"),
    )
    max_num_prefill_tokens: int | None = knob(
        None,
        "Most prompt tokens (recomputed ones included) in one step, all requests together. None: "
        "what the token budget leaves.",
        unit="tokens",
        trade_off="steps stay short while prompts arrive, which then take more of them",
        survey="4.2.4",
        at_least=1,
        at_most=1 << 26,
    )
    victim: str = knob(
        "last",
        "Which request loses its pages when they run out. last: the last in order (with fcfs, the "
        "one admitted last). least_computed: the one with the fewest computed tokens.",
        trade_off="the oldest request keeps its place, or the least work is done twice",
        survey="4.2.4",
        choices=("last", "least_computed"),
    )
    async_scheduling: bool = knob(
        False,
        "Plan and submit the next step while the device works on this one (overlap of depth 1). A "
        "request that ends with a token of this step is computed once more, in vain.",
        trade_off="the device does not wait for the host, against a row computed in vain per "
        "request; on a CPU, where submitting a step computes it, nothing is gained",
        survey="4.2.4",
    )
    preemption: str = knob(
        "recompute",
        "What happens to the pages of a preempted request. recompute: they are dropped, and its "
        "tokens are computed again. swap: they are saved to the host (memory.host_bytes) and "
        "loaded back; where the host is full, its tokens are computed again.",
        trade_off="arithmetic against traffic and host memory",
        survey="4.2.3",
        choices=("recompute", "swap"),
    )
