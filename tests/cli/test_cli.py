"""Text on stdout, figures on stderr, sentences for errors, exit codes that scripts can use."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest

from minserve.__main__ import COMMANDS, main
from minserve.config import describe


@pytest.fixture(autouse=True)
def quick_ceilings(monkeypatch, tmp_path_factory):
    """Ceilings are measured elsewhere; here a machine with round numbers stands in."""
    from minserve.hardware import Ceilings

    def fake(device="cpu", *, dtypes=("float32",), quick=True, refresh=False) -> Ceilings:
        return Ceilings(
            processor="test", device="cpu", threads=1, torch_version="0", date="2026-01-01",
            quick=True, cpu_share=1.0, bandwidth=(), matmul=(), matvec=(),
        )  # fmt: skip

    monkeypatch.setattr("minserve.cli.report.machine_ceilings", fake)
    monkeypatch.setattr("minserve.cli.info.machine_ceilings", fake)
    share = "50% of this machine's roofline"
    monkeypatch.setattr("minserve.cli.report.roofline_figure", lambda llm: share)


ENGINE = ["--dtype", "float32", "--device", "cpu"]


def test_generate_prints_text_alone_on_stdout_and_figures_on_stderr(capsys):
    words = ["generate", "def fib(n):", "--max-tokens", "8", "--temperature", "0", *ENGINE]
    assert main(words) == 0
    first = capsys.readouterr()
    assert "TTFT" in first.err and "TPOT" in first.err and "KV" in first.err
    assert "50% of this machine's roofline" in first.err
    assert main([*words, "--quiet"]) == 0
    second = capsys.readouterr()
    assert second.err == ""
    assert second.out == first.out
    assert second.out.strip()


def test_generate_reads_stdin_and_writes_a_trace(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdin", io.StringIO("import os\n"))
    path = tmp_path / "run.json"
    perfetto = tmp_path / "run.perfetto.json"
    words = ["generate", "-", "--max-tokens", "3", "--trace-file", str(path), *ENGINE]
    assert main(words) == 0
    from minserve import RunTrace

    assert RunTrace.from_json(path).totals.sampled_tokens <= 3
    monkeypatch.setattr(sys, "stdin", io.StringIO("import os\n"))
    assert main([*words[:4], "--trace-file", str(perfetto), *ENGINE]) == 0
    assert json.loads(perfetto.read_text())["traceEvents"]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["generate", "x", "--block-size", "0"], "block_size=0: expected an integer from 1"),
        (["generate", "x", "--max-tokens", "0"], "max_tokens=0: expected an integer of at least 1"),
        (["generate", ""], "the prompt is empty"),
        (["chat"], "no chat template"),
        (["generate", "x", "--kv-bytes", "10"], "holds no page"),
    ],
)
def test_a_wrong_value_is_a_sentence_and_a_hint_on_stderr_and_exit_code_2(capsys, words, sentence):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    told, hint = captured.err.splitlines()
    assert told.startswith("minserve: ") and sentence in told
    assert hint == f"`minserve {words[0]} --help` lists what it takes"


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("zoo/none", "no model 'zoo/none' in the zoo; it has: zoo/base, zoo/draft"),
        ("/nowhere/at/all", "no model '/nowhere/at/all': expected a directory"),
        (__file__, "is a file: give the Hugging Face directory"),
        ("/", "config.json"),
    ],
)
def test_a_model_that_is_not_there_is_a_sentence_and_exit_code_1(capsys, model, sentence):
    assert main(["generate", "x", "--model", model]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("minserve: ") and sentence in captured.err


def test_every_engine_field_has_its_flag_in_help(capsys):
    with pytest.raises(SystemExit) as done:
        main(["generate", "--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    for knob in describe():
        assert knob.flag in text or knob.flag.replace("--", "--no-") in text


def test_help_lists_the_commands_without_waiting_for_torch():
    code = "import sys, minserve.__main__ as m\ntry: m.main(['--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert command in done.stdout


def test_info_as_json_has_machine_model_and_config(capsys):
    assert main(["info", "--json", "--no-ceilings", *ENGINE, "--block-size", "8"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["config"]["memory.block_size"] == 8
    assert info["model"]["family"] == "llama"
    assert info["machine"]["cpu_cores"] >= 1
    assert main(["info", *ENGINE]) == 0
    assert "memory.block_size" in capsys.readouterr().out


def test_zoo_lists_its_models(capsys):
    assert main(["zoo", "list"]) == 0
    printed = capsys.readouterr().out
    assert "zoo/base" in printed and "zoo/draft" in printed


@pytest.mark.parametrize(
    ("text", "size"), [("64MiB", 64 << 20), ("2GB", 2 * 10**9), ("1e6", 10**6), ("5K", 5 * 1024)]
)
def test_sizes_are_read_with_their_units(text, size):
    from minserve.cli.options import parse_bytes

    assert parse_bytes(text) == size
