"""Random setups: everything that a code must carry."""

from __future__ import annotations

from hypothesis import strategies as st

from minserve.bench.compare.gpu import BOUNDS, DTYPES, OWN, Gpu
from minserve.bench.compare.setup import KEPT_OUT, Setup, Variant
from minserve.bench.compare.workload import KINDS, Workload
from minserve.config import describe
from minserve.hardware import DEVICES

NAMES = st.text("abc xyz-_é“”", min_size=1, max_size=12).map(str.strip).filter(bool)
NUMBERS = {
    "memory.kv_bytes": st.one_of(st.none(), st.integers(1, 1 << 40)),
    "scheduling.max_num_batched_tokens": st.one_of(st.none(), st.integers(1, 1 << 26)),
    "scheduling.max_num_seqs": st.integers(1, 1 << 20),
    "scheduling.starvation_limit_s": st.one_of(st.none(), st.floats(0, 1e6)),
    "memory.watermark": st.floats(0, 0.5),
    "memory.host_bytes": st.integers(0, 1 << 40),
    "seed": st.integers(-(2**62), 2**62),
}


def values() -> st.SearchStrategy:
    """A few fields with values within their bounds."""
    fields = {
        knob.path: st.booleans() if knob.type is bool else st.sampled_from(knob.choices)
        for knob in describe()
        if (knob.choices or knob.type is bool) and knob.path not in KEPT_OUT
    } | NUMBERS
    return st.fixed_dictionaries({}, optional=fields)


@st.composite
def workloads(draw) -> Workload:
    kind = draw(st.sampled_from(list(KINDS)))
    given = {}
    for parameter in KINDS[kind].parameters:
        if parameter.text or not draw(st.booleans()):
            continue
        if parameter.choices:
            given[parameter.name] = draw(st.sampled_from(parameter.choices))
        elif parameter.whole:
            given[parameter.name] = draw(st.integers(int(parameter.low), int(parameter.high)))
        else:
            given[parameter.name] = draw(st.floats(parameter.low, parameter.high))
    prompts = rows = ()
    if kind == "prompts":
        texts = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=30)
        prompts = tuple(draw(st.lists(texts, max_size=4)))
    if kind == "listed":
        lengths = draw(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 99)), max_size=5))
        rows = tuple((gap, length, 1 + n, -n, -1, 0) for n, (gap, length) in enumerate(lengths))
    return Workload(kind, given, prompts, rows)


@st.composite
def gpus(draw) -> Gpu:
    numbers = {
        name: draw(st.integers(int(low), int(high)) if name == "memory_bytes"
                   else st.floats(low, high))
        for name, (low, high) in BOUNDS.items()
        if draw(st.booleans())
    }  # fmt: skip
    name = draw(st.sampled_from([OWN, *DEVICES]))
    return Gpu(name=name, dtype=draw(st.sampled_from(DTYPES)), **numbers)


@st.composite
def setups(draw) -> Setup:
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    return Setup(
        model=draw(st.sampled_from(["zoo/base", "zoo/draft", "llama-3.1-8b", "some/directory"])),
        base=draw(values()),
        base_name=names[0],
        variants=tuple(Variant(name, draw(values())) for name in names[1:]),
        workload=draw(workloads()),
        clock=draw(st.sampled_from(["wall", "virtual"])),
        gpu=draw(gpus()),
        headline=draw(st.sampled_from(["ttft_p50_s", "duration_s", "bytes"])),
        rounds=draw(st.integers(1, 9)),
    )
