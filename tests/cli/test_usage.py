"""A wrong usage is one line that names the value and what was expected, a hint, and code 2."""

from __future__ import annotations

import pytest

from minserve.__main__ import main
from minserve.bench.runs import forward


@pytest.mark.parametrize(
    ("words", "sentence", "prog"),
    [
        ("bake", "argument COMMAND: invalid choice: 'bake' (choose from", ""),
        ("generate", "the following arguments are required: prompt", " generate"),
        ("generate x --max-tokens ten", "--max-tokens: 'ten': expected an integer", " generate"),
        ("generate x --top-p high", "argument --top-p: 'high': expected a number", " generate"),
        ("generate x --block-size 1.5", "--block-size: '1.5': expected an integer", " generate"),
        ("generate x --kv-bytes lots", "'lots' is no size: expected something like", " generate"),
        ("generate x --dtype int3", "argument --dtype: invalid choice: 'int3'", " generate"),
        ("generate x --colour", "unrecognized arguments: --colour", " generate"),
        ("generate x y", "2 prompts: expected one", " generate"),
        ("generate --json - -", "stdin can be read once", " generate"),
        ("chat --max-tokens", "argument --max-tokens: expected one argument", " chat"),
        ("bench", "the following arguments are required: BENCHMARK", " bench"),
        ("bench sprint", "argument BENCHMARK: invalid choice: 'sprint'", " bench"),
        ("bench offline --repeats x", "--repeats: 'x': expected an integer", " bench offline"),
        ("bench offline --set block_size", "expected FIELD=VALUE", " bench offline"),
        ("zoo bake", "invalid choice: 'bake'", " zoo"),
        ("zoo evaluate --signatures x", "'x': expected an integer", " zoo evaluate"),
        ("lab nurse", "invalid choice: 'nurse'", " lab"),
        ("completion tcsh", "invalid choice: 'tcsh'", " completion"),
    ],
)
def test_a_wrong_usage_is_one_line_and_a_hint(capsys, words, sentence, prog):
    try:
        code = main(words.split())
    except SystemExit as end:
        code = end.code
    assert code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    told, hint = captured.err.splitlines()
    assert told.startswith("minserve: ") and sentence in told
    assert hint == f"`minserve{prog} --help` lists what it takes"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["zoo", "evaluate", "/nowhere"], "There is no model '/nowhere' in the zoo"),
        (["zoo", "evaluate", "--tokens", "/nowhere"], "/nowhere/stdlib.npy: no such file"),
        (["bench", "latency", "--json", "/"], "--json / cannot be written: it is a directory"),
        (["bench", "calibrate", "--out", "/"], "--out / cannot be written: it is a directory"),
        (["bench", "commits", "--old", "/", "--json", "/x/y"], "/x is no directory"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_and_code_1(capsys, words, sentence):
    assert main(words) == 1
    told = capsys.readouterr().err
    assert told.startswith("minserve: ") and sentence in told and told.count("\n") == 1


def test_a_file_error_of_the_system_names_the_file(capsys, monkeypatch):
    def denied(args):
        raise PermissionError(13, "Permission denied", "/some/file")

    monkeypatch.setattr(forward, "run", denied)
    assert main(["bench", "forward"]) == 1
    assert capsys.readouterr().err == "minserve: /some/file: permission denied\n"


def test_a_bug_keeps_its_traceback(monkeypatch):
    def broken(args):
        raise ValueError("a bug")

    monkeypatch.setattr(forward, "run", broken)
    with pytest.raises(ValueError, match="a bug"):
        main(["bench", "forward"])
