"""Sides really serve: ours, transformers, and the outside peers' protocol with a stand-in."""

from __future__ import annotations

import argparse
import json
import struct
import sys
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

from minserve.bench import cli
from minserve.bench.counts.outside import measure_outside
from minserve.bench.peers import to_gguf
from minserve.bench.peers.child_side import LABELS, ChildSide, convert_to_gguf
from minserve.bench.peers.engine_side import EngineSide
from minserve.bench.peers.equal import compare_tokens
from minserve.bench.peers.sides import PeerUnavailableError
from minserve.bench.peers.transformers_peer import CONTINUOUS, TransformersSide, best_batch_size
from minserve.bench.workloads.shapes import SHAPES, write_checkpoint
from minserve.bench.workloads.workload import WorkItem, Workload
from minserve.config import EngineConfig, MemoryConfig, SchedulingConfig

WORKLOAD = Workload(
    "tiny",
    tuple(WorkItem(tuple(range(2 + n, 9 + 3 * n)), max_tokens=4 + n) for n in range(4)),
    seed=0,
)
CONFIG = EngineConfig(
    dtype="float32",
    device="cpu",
    memory=MemoryConfig(kv_bytes=1 << 20),
    scheduling=SchedulingConfig(max_num_seqs=4, max_model_len=64),
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = replace(
        SHAPES["trial"], name="tiny", vocab_size=64, hidden_size=32, num_layers=2, num_heads=4,
        num_kv_heads=2, head_dim=8, intermediate_size=48, max_position=512,
    )  # fmt: skip
    return write_checkpoint(shape, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def transformers(tiny: Path) -> TransformersSide:
    return TransformersSide(tiny, "float32", batch_size=3)


def test_every_mode_of_transformers_generates_our_tokens(
    tiny: Path, transformers: TransformersSide
) -> None:
    engine = EngineSide(tiny, CONFIG)
    ours = engine.throughput(WORKLOAD)
    assert [len(tokens) for tokens in ours.token_ids] == [4, 5, 6, 7]
    assert len(ours.metrics) == 4
    assert engine.trace.totals.sampled_tokens == ours.num_output_tokens == 22
    for batch_size in (1, 3, 64, CONTINUOUS):
        transformers.batch_size = batch_size
        theirs = transformers.throughput(WORKLOAD)
        check = compare_tokens(
            WORKLOAD, ours.token_ids, theirs.token_ids, against="transformers", dtype="float32",
            gap=transformers.top_two_gap,
        )  # fmt: skip
        assert check.equal, (batch_size, check)
    stream = transformers.stream(WORKLOAD.items[0])
    alone = engine.stream(WORKLOAD.items[0])
    assert stream.token_ids == alone.token_ids == ours.token_ids[0]
    assert 0 < stream.ttft_s < stream.e2e_s
    engine.close()


def test_best_setting_is_searched_and_a_failing_one_reported(
    transformers: TransformersSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(workload: Workload) -> None:
        raise RuntimeError("no paged attention here")

    monkeypatch.setattr(transformers, "_continuous", fail)
    tried = best_batch_size(transformers, WORKLOAD, (1, 4, CONTINUOUS))
    assert "no paged attention here" in tried[-1]["error"]
    worked = tried[:2]
    best = max(worked, key=lambda entry: entry["output_throughput"])
    assert transformers.batch_size == best["batch_size"]
    with pytest.raises(PeerUnavailableError, match="could not serve"):
        best_batch_size(transformers, WORKLOAD, (CONTINUOUS,))


def test_time_outside_operators_is_a_share_of_the_step(tiny: Path) -> None:
    found = measure_outside(tiny, CONFIG, batch=3, steps=6, repeats=1)
    assert found.steps >= 3
    assert found.operators_ms > 0
    assert 0 <= found.share <= found.share_with_sampling < 1
    with pytest.raises(RuntimeError, match="max_num_seqs is 4"):
        measure_outside(tiny, CONFIG, batch=9, steps=6, repeats=1)


@pytest.mark.parametrize("benchmark", ["offline", "latency"])
def test_benchmarks_run_from_the_command_line_to_one_json_object(
    tiny: Path, tmp_path: Path, benchmark: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    words = [benchmark, "--model", str(tiny), "--repeats", "1", "--vs", "transformers"]
    words += ["--no-progress", "--skip-floor", "--set", "memory.kv_bytes=4000000"]
    if benchmark == "latency":
        words += ["--input-len", "8", "--output-len", "4"]
    else:
        words += ["--num-prompts", "2"]
    code = cli.run(parser.parse_args(words))
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert code == 0
    assert result["benchmark"] == benchmark
    assert result["model_id"] == tiny.name
    assert str(tiny) not in captured.out
    assert [side["name"] for side in result["sides"]] == ["minserve", "transformers"]
    assert result["sides"][1]["settings"]["transformers"]
    assert result["sides"][0]["settings"]["memory.kv_bytes"] == 4_000_000
    assert set(result["ratios"]) == {"transformers"}
    assert "transformers" in captured.err
    if benchmark == "offline":
        assert result["equal_tokens"][0]["equal"]
        assert result["completed"] == 2
        assert len(result["settings_tried"]) == 5


STAND_IN = """
    import json, sys
    def say(value): print(json.dumps(value), flush=True)
    say({"ready": True, "settings": {"openvino": "stand-in", "argv": sys.argv[1:]}})
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "stream":
            tokens = command["prompt"][: command["max_tokens"]]
            say({"ttft_s": 0.5, "tpot_s": 0.25, "token_ids": tokens})
        elif len(command["requests"]) > 2:
            say({"error": "RuntimeError: too many"})
        elif len(command["requests"]) == 2:
            sys.stderr.write("out of memory")
            sys.exit(3)
        else:
            say({"duration_s": 2.0, "token_ids": [[1] * n for _, n in command["requests"]]})
"""


@pytest.mark.parametrize("peer", LABELS)
def test_a_peer_is_a_child_that_answers_line_by_line(tmp_path: Path, peer: str) -> None:
    script = tmp_path / "peer.py"
    script.write_text(dedent(STAND_IN))
    side = ChildSide(peer, sys.executable, "m.gguf", hints="f32", threads=2, script=script)
    assert side.name == f"{peer}-f32"
    assert side.settings["argv"] == [
        peer, "--gguf", "m.gguf", "--threads", "2", "--hints", "f32",
    ]  # fmt: skip
    stream = side.stream(WorkItem((4, 5, 6), 2))
    assert stream.token_ids == (4, 5)
    assert stream.e2e_s == 0.75
    assert side.throughput(WORKLOAD.first(1)).output_throughput == 2.0
    with pytest.raises(PeerUnavailableError, match=f"the {LABELS[peer]} peer: .*too many"):
        side.throughput(WORKLOAD)
    with pytest.raises(PeerUnavailableError, match="code 3: out of memory"):
        side.throughput(WORKLOAD.first(2))
    side.close()
    side.close()


def test_a_missing_peer_is_said(tmp_path: Path) -> None:
    with pytest.raises(PeerUnavailableError, match="cannot start"):
        ChildSide("llama", tmp_path / "no-python", "m.gguf")
    script = tmp_path / "peer.py"
    script.write_text("raise SystemExit('no module named openvino_genai')")
    with pytest.raises(PeerUnavailableError, match="no module named openvino_genai"):
        ChildSide("openvino", sys.executable, "m.gguf", script=script)
    with pytest.raises(PeerUnavailableError, match="gguf and numpy"):
        convert_to_gguf(sys.executable, tmp_path / "no-model", tmp_path / "out.gguf")


@pytest.mark.parametrize("peer", LABELS)
def test_every_outside_peer_says_what_its_environment_lacks(peer: str) -> None:
    with pytest.raises(PeerUnavailableError, match="No module named"):
        ChildSide(peer, sys.executable, "m.gguf")


def test_safetensors_are_read_without_torch(tiny: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    expected = load_file(tiny / "model.safetensors")
    found = dict(to_gguf.read_safetensors(tiny / "model.safetensors"))
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert np.array_equal(values, expected[name].numpy())
    # The upper halves of float32 numbers.
    header = json.dumps({"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    halves = np.array([1.5, -2.0], dtype=np.float32).view(np.uint16)[1::2].tobytes()
    path = tmp_path / "b.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + halves)
    assert dict(to_gguf.read_safetensors(path))["x"].tolist() == [1.5, -2.0]


def test_rotary_pairs_move_next_to_each_other_within_a_head() -> None:
    weight = np.arange(8)[:, None]  # two heads of size 4
    assert to_gguf.interleave_halves(weight, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_placeholder_vocabulary_is_a_byte_level_bpe(tmp_path: Path) -> None:
    tokens, merges, control = to_gguf.tokenizer_of(tmp_path, 4096)
    assert len(tokens) == len(set(tokens)) == 4096
    assert control == set(tokens[:2])
    assert all(merge.replace(" ", "") in tokens for merge in merges)
    for vocab_size in (64, 70_000):
        tokens, merges, _ = to_gguf.tokenizer_of(tmp_path, vocab_size)
        assert len(tokens) == len(set(tokens)) == vocab_size
