"""Closed, full and narrow streams, and files that cannot be written: one sentence, no traceback."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minserve.__main__ import main

WORDS = ["generate", "def f():", "--quiet", "--max-tokens", "3", "--model", "zoo/draft"]
WORDS += ["--dtype", "float32", "--device", "cpu", "--temperature", "0"]


def never(*args, **kwargs):
    raise AssertionError("a model was loaded for a run that cannot be kept")


def sentence(capsys, code: int, words=WORDS) -> str:
    """The one line on stderr of a command that ends with `code`."""
    assert main(words) == code
    said = capsys.readouterr().err
    assert said.startswith("minserve: ") and said.count("\n") == 1
    return said


@pytest.mark.parametrize("words", [["generate", "-", *WORDS[2:]], ["chat", "--model", "zoo/draft"]])
def test_without_stdin_nothing_is_read(capsys, monkeypatch, words):
    monkeypatch.setattr("minserve.llm.LLM.chat_prompt", lambda self, messages: [1])
    monkeypatch.setattr(sys, "stdin", None)
    assert main(words) == 2
    assert "stdin is closed" in capsys.readouterr().err.splitlines()[-2]


def test_stdin_that_is_no_text_is_a_sentence(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff"), encoding="utf-8"))
    assert "byte 2 of stdin is not utf-8" in sentence(capsys, 1, ["generate", "-", *WORDS[2:]])


def test_without_stdout_nothing_is_computed(capsys, monkeypatch):
    monkeypatch.setattr("minserve.cli.generate.LLM", never)
    monkeypatch.setattr(sys, "stdout", None)
    assert "stdout is closed" in sentence(capsys, 1)


def test_without_stderr_figures_do_not_go_to_stdout(capsys, monkeypatch):
    assert main(WORDS) == 0
    text = capsys.readouterr().out
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr("minserve.cli.generate.figures", lambda llm: "figures")
    assert main([word for word in WORDS if word != "--quiet"]) == 0
    assert capsys.readouterr().out == text


def test_a_narrow_stdout_is_a_sentence(capsys, monkeypatch):
    def stream(llm, prompt, params):
        print("\u20ac", flush=True)

    monkeypatch.setattr("minserve.cli.generate.stream_to_stdout", stream)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert "stdout takes only ascii" in sentence(capsys, 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_sentence_and_nothing_more():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "minserve", *WORDS]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "minserve: the output cannot be written: no space left on device\n"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "it is a directory"),
        ("file/run.json", "is no directory"),
        ("none/run.json", "is no directory"),
        ("pipe", "no regular file"),
        ("x" * 253, "name too long"),
        ("x" * 5000, "name too long"),
        ("a\0b", "null byte"),
    ],
    ids=["directory", "below", "none", "pipe", "long", "longer", "nul"],
)
def test_where_no_trace_can_be_written_nothing_is_computed(
    capsys, monkeypatch, tmp_path, name, reason
):
    (tmp_path / "file").write_text("kept")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(os.listdir(tmp_path))
    monkeypatch.setattr("minserve.cli.generate.LLM", never)
    path = os.path.join(tmp_path, name) if name else str(tmp_path)
    said = sentence(capsys, 1, [*WORDS, "--trace-file", path])
    assert f"--trace-file {path} cannot be written: " in said and reason in said
    assert sorted(os.listdir(tmp_path)) == before and (tmp_path / "file").read_text() == "kept"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_where_the_directory_takes_no_files_nothing_is_computed(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("minserve.cli.generate.LLM", never)
    tmp_path.chmod(0o500)
    assert "permission denied" in sentence(capsys, 1, [*WORDS, "--trace-file", f"{tmp_path}/x"])


def test_a_trace_that_fails_while_it_is_written_names_the_file_that_was_given(
    capsys, monkeypatch, tmp_path
):
    def full(trace, path):
        raise OSError(28, "No space left on device", f"{path}.tmp")

    monkeypatch.setattr("minserve.trace.RunTrace.to_json", full)
    path = tmp_path / "run.json"
    said = sentence(capsys, 1, [*WORDS, "--trace-file", str(path)])
    assert f"--trace-file {path} cannot be written: no space left" in said and ".tmp" not in said
    assert os.listdir(tmp_path) == []


def test_a_model_name_of_thousands_of_characters_is_a_short_sentence(capsys):
    assert len(sentence(capsys, 1, ["generate", "x", "--model", "x" * 5000])) < 400


@pytest.mark.parametrize("words", [["generate", "-", *WORDS[2:]], ["chat"]])
def test_bytes_that_are_no_text_are_a_sentence_in_the_c_locale_too(words):
    """There Python hands them on, and the tokenizer would be given half characters."""
    code = "import sys; from minserve.__main__ import main\n"
    code += "from minserve.llm import LLM; LLM.chat_prompt = lambda self, messages: [1]\n"
    code += "sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        input=b"def f(\xff):\n",
        capture_output=True,
        env={**os.environ, "LC_ALL": "C"},
    )
    assert done.returncode == 1 and done.stdout == b""
    told = done.stderr.decode().splitlines()[-1]
    assert "stdin is not utf-8" in told and b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "pipe"),
    [
        ("generate x --quiet --ignore-eos --max-tokens 200", "|"),
        ("generate --help", "|"),
        ("generate x --max-tokens 1", "2>&1 >/dev/null |"),
    ],
    ids=["text", "help", "figures"],
)
def test_a_closed_pipe_ends_quietly_as_sigpipe_would(words, pipe):
    command = f"{sys.executable} -m minserve {words} {pipe} true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout == "141\n" and done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", [["chat", "--help"], ["zoo", "list"], ["completion", "bash"]])
def test_every_command_says_that_the_disk_is_full(words):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "minserve", *words]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "minserve: the output cannot be written: no space left on device\n"


@pytest.mark.parametrize("name", ["run.json", "run.perfetto.json"])
def test_a_process_that_may_write_no_byte_names_the_file(tmp_path, name):
    """`ulimit -f 0`: the file can be made, and its first byte is refused, as on a full disk."""
    path = tmp_path / name
    command = [sys.executable, "-m", "minserve", *WORDS, "--trace-file", str(path)]
    shell = ["bash", "-c", 'ulimit -f 0; exec "$@"', "_"]
    done = subprocess.run([*shell, *command], capture_output=True, text=True)
    assert done.returncode == 1
    told = f"minserve: --trace-file {path} cannot be written: file too large"
    assert done.stderr.splitlines()[-1] == told and "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


def test_ctrl_c_while_a_command_loads_is_a_sentence():
    code = "import sys, os, signal; from minserve import __main__ as m\n"
    code += "m.command_parser = lambda name: signal.raise_signal(signal.SIGINT)\n"
    code += "sys.exit(m.main(['info']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130 and done.stderr == "\nminserve: interrupted\n"
