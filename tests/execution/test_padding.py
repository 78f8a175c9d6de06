"""Padding is computed, counted and dropped: rows by rows, pages untouched, tokens as without."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine.fakes import tiny_spec
from hypothesis import given
from hypothesis import strategies as st
from models.oracle import random_model, save

from minserve.batch import PLAIN
from minserve.bench.workloads.drive import drive
from minserve.bench.workloads.traffic import at_once, fixed_length
from minserve.build import build_engine, build_virtual_engine
from minserve.config import ConfigError, EngineConfig
from minserve.execution.padding import pad, padding_lens
from minserve.execution.profiling import largest_batch
from minserve.hardware import DEVICES, WorkCounter
from minserve.loading import load_model
from minserve.virtual import CostModel, LaunchCost

PROMPTS = (3, 40, 1, 17, 9)
KINDS = ("longest", "power_of_two", "batch", "ladder")
COST = CostModel(DEVICES["A100 80GB SXM"], efficiency=0.5)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=101, hidden_size=48, intermediate_size=80, num_hidden_layers=2,
        num_attention_heads=6, num_key_value_heads=2, head_dim=16, max_position_embeddings=128,
        eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    return save(random_model(config, seed=5), tmp_path_factory.mktemp("padding"))


def alike(padding):
    """What runs with this padding and without share."""
    return {"scheduling.policy": "static"} if padding == "batch" else {}


def config(padding, **values):
    fields = {
        "device": "cpu", "dtype": "float64", "kernels.backend": "torch",
        "kernels.padding": padding, "scheduling.max_num_seqs": 4,
        "scheduling.max_num_batched_tokens": 64, "scheduling.max_model_len": 96,
        "memory.check_integrity": True, "trace.per_request": True, **alike(padding),
    } | {name.replace("__", "."): value for name, value in values.items()}  # fmt: skip
    return EngineConfig().with_values(fields)


def traffic(prompts=PROMPTS, tokens=6):
    draw = torch.Generator().manual_seed(3)
    drawn = [torch.randint(2, 101, (n,), generator=draw).tolist() for n in prompts]
    return at_once(drawn, [fixed_length(tokens + index) for index in range(len(prompts))])


def served(model_dir, padding, prepare=None, **values):
    engine = build_engine(load_model(model_dir, config(padding, **values)))
    if prepare is not None:
        prepare(engine)
    tokens = [request.output_token_ids for request in drive(engine, traffic()).requests]
    return tokens, engine


def idle(kind, step):
    """Four requests are a batch until the last of them has its nine tokens; one is the next."""
    return (4 if step.index < 9 else 1) - len(step.requests) if kind == "batch" else 0


def rows_wanted(kind, step):
    longest = max(part.num_tokens for part in step.requests)
    if kind == "ladder":
        # Four requests at most, so the counts are 1, 2 and 4; a step with a prompt is not padded.
        return step.num_tokens if longest > 1 else (1, 2, 4, 4)[step.num_tokens - 1]
    if kind != "power_of_two":
        return longest * len(step.requests) + idle(kind, step)
    return 1 << math.ceil(math.log2(step.num_tokens))


@given(
    st.sampled_from(["none", *KINDS]),
    st.lists(st.integers(1, 300), min_size=1, max_size=40)
    | st.integers(1, 40).map(lambda count: [1] * count),
    st.integers(0, 9),
)
def test_the_shape_is_what_its_name_says(kind, lens, left):
    added = padding_lens(kind, lens, most_rows=40, idle_places=left)
    assert min(added, default=1) >= 1
    rows = sum(lens) + sum(added)
    if kind == "none" or (kind == "ladder" and max(lens) > 1):
        assert rows == sum(lens)
    elif kind == "ladder":
        assert rows in (1, 2, 4, 8, 16, 24, 32, 40) and rows - sum(lens) < 8
    elif kind == "longest":
        assert rows == max(lens) * len(lens)
    elif kind == "batch":
        assert rows == max(lens) * len(lens) + left
    else:
        assert rows & (rows - 1) == 0 and sum(lens) <= rows < 2 * sum(lens)
    assert padding_lens("longest", [max(lens)] * len(lens)) == ()


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_counts_its_padding_and_its_work(kind, model_dir):
    plain_tokens, plain = served(model_dir, "none", **alike(kind))
    tokens, padded = served(model_dir, kind)
    assert tokens == plain_tokens
    assert len(padded.trace.steps) == len(plain.trace.steps)
    counter = WorkCounter(padded.config.model, 8)
    for step, without in zip(padded.trace.steps, plain.trace.steps, strict=True):
        assert step.num_tokens == without.num_tokens == without.num_rows
        assert step.num_rows == rows_wanted(kind, step)
        real = [part.num_tokens for part in step.requests]
        contexts = [part.start + part.num_tokens for part in step.requests]
        added = padding_lens(kind, real, most_rows=4, idle_places=idle(kind, step))
        counted = counter.count([*real, *added], [*contexts, *added], step.num_sampled_tokens)
        assert step.work == counted
        assert (step.work.flops > without.work.flops) == (step.num_padded_rows > 0)
    totals = padded.trace.totals
    assert totals.padded_rows == sum(step.num_padded_rows for step in padded.trace.steps) > 0
    assert plain.trace.totals.padded_rows == 0


def rows(engine):
    return [(step.num_rows, step.num_padded_rows) for step in engine.trace.steps]


def poison(engine):
    """Every slot of the pool, the scratch page's too, as memory that nobody wrote may be."""
    for keys, values in engine._runner._attention.caches:
        keys.fill_(math.nan)
        values.fill_(math.nan)


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_writes_to_the_scratch_page_alone(kind, backend, model_dir):
    plain, before = served(model_dir, "none", poison, kernels__backend=backend, **alike(kind))
    tokens, after = served(model_dir, kind, poison, kernels__backend=backend)
    assert tokens == plain
    pages = after.memory.pool.num_blocks
    assert before.memory.pool.num_blocks == pages
    for (keys, _), (padded, _) in zip(
        before._runner._attention.caches, after._runner._attention.caches, strict=True
    ):
        assert len(keys) == pages and len(padded) == pages + 1
        torch.testing.assert_close(padded[:pages], keys, equal_nan=True, rtol=1e-9, atol=1e-9)
        assert not padded[pages].isnan().all()


@pytest.mark.parametrize("kind", ["none", *KINDS])
def test_a_modelled_engine_charges_for_padding(kind, model_dir):
    _, real = served(model_dir, kind)
    spec = real.config.model
    built = build_virtual_engine(spec, config(kind, memory__kv_bytes=1 << 20), COST)
    drive(built, traffic())
    assert rows(built) == rows(real)
    without = config("none", memory__kv_bytes=1 << 20, **alike(kind))
    plain = build_virtual_engine(spec, without, COST)
    drive(plain, traffic())
    longer = built.trace.totals.duration_s > plain.trace.totals.duration_s
    assert longer == (kind != "none")


def rectangles(requests, aborts=None, n=1, **values):
    """A static batch on modelled time: padded rows step by step, of requests given by prompt and
    answer; `aborts` is told to leave after so many steps."""
    small = {"memory__kv_bytes": 1 << 20, "scheduling__max_model_len": 64}
    engine = build_virtual_engine(tiny_spec(64), config("batch", **(small | values)), COST)
    for number, (prompt, answer) in enumerate(requests):
        engine.add(f"{number}", [1] * prompt, replace(fixed_length(answer), n=n))
    while engine.has_work:
        engine.step()
        for name, steps in (aborts or {}).items():
            if len(engine.trace.steps) == steps:
                assert engine.abort(name)
    return [step.num_padded_rows for step in engine.trace.steps]


def test_who_has_ended_keeps_its_row_until_the_last_of_its_batch_has():
    # Prompts of 3, 5 and 2 are a rectangle of 5 x 3; then a row each for one, two, two that ended.
    # The fourth is a batch of its own, with the places of nobody.
    requests = [(3, 1), (5, 4), (2, 2), (4, 2)]
    assert rectangles(requests, scheduling__max_num_seqs=3) == [5, 1, 2, 2, 0, 0]


def test_a_batch_whose_prompts_take_several_steps_is_one_batch():
    # By a budget of 8: 6 + 2, 4 + 4, 1 + 2; the first has its only token after the first step.
    requests = [(6, 1), (6, 2), (6, 1)]
    assert rectangles(requests, scheduling__max_num_batched_tokens=8) == [4, 1, 1 + 1]


def test_an_aborted_request_keeps_its_row_and_one_that_waited_has_none():
    running = {"1": 2}
    assert rectangles([(4, 5), (4, 5)], running) == [0, 0, 1, 1, 1]
    # Nobody is left: what comes next is another batch.
    both = {"0": 2, "1": 2}
    requests = [(4, 5), (4, 5), (4, 2)]
    assert rectangles(requests, both, scheduling__max_num_seqs=2) == [0, 0, 0, 0]
    waiting = {"2": 1}
    assert rectangles(requests, waiting, scheduling__max_num_seqs=2) == [0] * 5


def test_a_preempted_request_leaves_its_row_to_the_batch_and_is_served_in_the_next():
    pages = 4 * 4 * tiny_spec(64).kv_bytes_per_token(2)
    short = {"memory__block_size": 4, "memory__kv_bytes": pages, "memory__watermark": 0.0}
    # Two pages each, until the first needs a third; the second computes 9 tokens again.
    assert rectangles([(4, 9), (4, 9)], **short) == [0] * 5 + [1] * 4 + [0] * 4


@given(
    st.lists(st.tuples(st.integers(1, 15), st.integers(1, 20)), min_size=1, max_size=4),
    st.integers(1, 3),
)
def test_a_batch_is_as_wide_at_its_last_step_as_at_its_second(requests, n):
    values = {"scheduling__max_num_seqs": 12, "scheduling__max_num_batched_tokens": 256}
    padded = rectangles(requests, n=n, **values)
    longest = max(answer for _, answer in requests)
    ended = [n * sum(answer <= step for _, answer in requests) for step in range(1, longest)]
    assert padded[1:] == ended


def test_nothing_is_compiled_on_modelled_time():
    with pytest.raises(ConfigError, match=r"kernels.compile=True has nothing to compile"):
        build_virtual_engine(tiny_spec(64), config("none", kernels__compile=True), COST)


def test_without_a_compiler_nothing_is_compiled(model_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"kernels.compile=True .* no C\+\+ compiler: install"):
        build_engine(load_model(model_dir, config("none", kernels__compile=True)))


@pytest.mark.parametrize("kind", ["longest", "batch"])
def test_memory_is_profiled_with_the_padding(kind, model_dir):
    loaded = load_model(model_dir, config(kind))
    # One prompt takes the budget but for a token each of the others, and all get its rows.
    assert largest_batch(loaded.config).num_tokens == 4 * (64 - 3)
    packed = load_model(model_dir, config("none"))
    assert largest_batch(packed.config).num_tokens == 64


def test_rows_of_padding_beside_a_tree_are_plain(model_dir):
    """A row that sees nothing at all would be NaN, and a long one would be refused as a tree."""
    batch = largest_batch(load_model(model_dir, config("none")).config)
    tree = torch.arange(batch.num_tokens)
    padded = pad(replace(batch, tree=tree), "batch", [0], 16, idle_places=3)
    assert padded.tree.tolist() == [*tree.tolist(), PLAIN, PLAIN, PLAIN]
    assert pad(batch, "batch", [0], 16, idle_places=3).tree is None


def test_a_graph_is_launched_once_where_its_rows_were_captured():
    spec = tiny_spec(64)
    work = WorkCounter(spec, 2).count((1,) * 6, (9,) * 6, 6)
    bound_s = CostModel(COST.device).step_s(work, 6, 6)
    cost = LaunchCost(COST.device, launches=100, launch_s=bound_s, captured=frozenset({8}))
    assert cost.step_s(work, 6, 6) == pytest.approx(100 * bound_s)
    assert cost.step_s(work, 8, 6) == pytest.approx(bound_s)
    # A device that is slower than its host hides the launches.
    assert LaunchCost(COST.device, launches=100, launch_s=1e-12).step_s(work, 6, 6) == bound_s
