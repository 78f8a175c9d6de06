"""`minserve bench compare`: all sides on either clock, and what cannot run is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minserve.__main__ import main
from minserve.bench.compare.code import decode, encode
from minserve.bench.compare.setup import Setup

SMALL = ("--workload", "independent", "count=4", "rate=0", "prompt=6", "output=4", "lengths=fixed")
TORCH = ("--set", "kernels.backend=torch", "--set", "memory.kv_bytes=2MiB")


def compare(tmp_path, *arguments):
    out = tmp_path / "result.json"
    words = ["bench", "compare", *arguments, "--json", str(out), "--no-progress"]
    assert main(words) == 0
    return json.loads(out.read_text())


def test_four_sides_on_the_virtual_clock(tmp_path, capsys):
    variants = [word for n in (1, 2, 4) for word in
                ("--variant", f"{n} slots", f"scheduling.max_num_seqs={n}")]  # fmt: skip
    found = compare(tmp_path, *SMALL, *variants, "--modelled", "T4", "--gpu-dtype", "float16")
    assert list(found["sides"]) == ["base", "1 slots", "2 slots", "4 slots"]
    durations = [side["duration_s"] for side in found["sides"].values()]
    assert durations[1] > durations[2] > durations[3] == durations[0]
    assert found["sides"]["1 slots"]["changes"] == {"scheduling.max_num_seqs": 1}
    assert found["device_modelled"] == "T4" and found["rounds"] == 1
    assert "modelled" in capsys.readouterr().err
    again = compare(tmp_path, "--code", found["code"])
    assert again["sides"] == found["sides"]


def test_two_sides_on_this_machine_take_turns(tmp_path):
    found = compare(tmp_path, *SMALL, *TORCH, "--variant", "static", "scheduling.policy=static",
                    "--rounds", "3")  # fmt: skip
    for side in found["sides"].values():
        assert len(side["durations_s"]) == 3 and side["completed"] == 4
        assert side["duration_s"] == sorted(side["durations_s"])[1]
    assert len(found["times_base"]["static"]["duration_s"]["values"]) == 3
    assert decode(found["code"]).clock == "wall"


def test_a_gpu_of_three_numbers_is_faster_when_they_are_larger(tmp_path):
    slow, fast = (
        compare(tmp_path, *SMALL, "--own-gpu", f"{x * 1e12}", f"{x * 1e11}", "24e9",
                "--overhead-ms", "0")["sides"]["base"]["duration_s"]
        for x in (1, 4)
    )  # fmt: skip
    assert slow == pytest.approx(4 * fast)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--variant", "a", "scheduling.order=lpm"], "lpm"),
        (["--modelled", "H9000"], "no GPU 'H9000'"),
        (["--workload", "nothing"], "no workload 'nothing'"),
        (["--workload", "independent", "count=many"], "expected a number"),
        (["--set", "memory.kv_bytes=lots"], "expected a size, such as 64MiB"),
        (["--set", "memory.disk_path=/tmp"], "cannot be set in a comparison"),
        (["--model", "llama-3.1-8b"], "a shape without weights"),
        (["--model", "someone/their-model"], "no model 'someone/their-model' here"),
        (["--workload", "trace", "file=README.md"], "README.md: it is none of the trace formats"),
        (["--workload", "trace", "file=pyproject.toml"], "pyproject.toml, line 1: not JSON"),
        (["--own-gpu", "1e12", "1e11", "inf"], "gpu memory_bytes=inf: expected"),
        (["--own-gpu", "1e12", "1e11", "nan"], "gpu memory_bytes=nan: expected"),
        (["--workload", "independent", "rate=1e-300"], "rate=1e-300: expected at least 1e-06"),
    ],
)
def test_what_cannot_run_is_one_line_and_the_exit_code_of_wrong_usage(
    capsys, monkeypatch, arguments, said
):
    monkeypatch.chdir(Path(__file__).parents[3])
    assert main(["bench", "compare", *SMALL, *arguments, "--no-progress"]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert said in error and "`minserve bench compare --help`" in hint


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["play1.x"], "this code is damaged"),
        ([""], "this is no code of the playground"),
        ([encode(Setup()), "--rounds", "5"], "a whole comparison: leave out --rounds"),
        ([encode(Setup()), "--set", "memory.block_size=32"], "leave out --set"),
        ([encode(Setup()), "--variant", "a"], "leave out --variant"),
        ([encode(Setup()), "--modelled", "T4"], "leave out --modelled"),
        ([encode(Setup()), *SMALL], "leave out --workload"),
    ],
)
def test_a_code_stands_alone(capsys, monkeypatch, arguments, said):
    monkeypatch.setattr("minserve.bench.compare.command.report_of", None)
    assert main(["bench", "compare", "--code", *arguments]) == 2
    assert said in capsys.readouterr().err
