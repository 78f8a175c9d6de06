"""The flags of `minserve generate` that give an answer its form."""

from __future__ import annotations

import json

import pytest

from minserve.__main__ import main

ENGINE = ["--model", "zoo/draft", "--dtype", "float32", "--device", "cpu", "--quiet"]
SCHEMA = {"type": "array", "minItems": 1, "maxItems": 2, "items": {"enum": ["x", "y"]}}


def generate(capsys, *flags: str) -> str:
    assert main(["generate", "x = ", *ENGINE, *flags]) == 0
    return capsys.readouterr().out.removesuffix("\n")


def test_a_choice_and_an_expression_bind_the_text(capsys):
    choices = ["good morning", "good night"]
    assert generate(capsys, "--choice", choices[0], "--choice", choices[1]) in choices
    assert generate(capsys, "--regex", "ab{3}c") == "abbbc"


@pytest.mark.parametrize("where", ["file", "text", "json"])
def test_a_schema_is_a_file_or_the_text_itself(where, capsys, tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    given = str(path) if where == "file" else json.dumps(SCHEMA)
    text = generate(capsys, "--json-schema", given, *(["--json"] if where == "json" else []))
    if where == "json":  # the lines of the output, which have nothing to do with the schema
        text = json.loads(text)["text"]
    assert set(json.loads(text)) <= {"x", "y"}


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--regex", "a("], "structured_outputs.regex='a(' cannot be compiled"),
        (["--json-schema", "nowhere.json"], "nowhere.json cannot be read as a JSON schema"),
        (["--json-schema", '{"not": {}}'], "Unimplemented keys"),
        (["--json-schema", "{"], "expected a JSON schema"),
        (["--choice", "a", "--ignore-eos"], "ignore_eos continues after the end"),
    ],
)
def test_what_is_no_form_is_told_in_a_sentence(flags, told, capsys):
    assert main(["generate", "x = ", *ENGINE, *flags]) in (1, 2)
    captured = capsys.readouterr()
    assert told in captured.err and "Traceback" not in captured.err and not captured.out


def test_two_forms_at_once_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["generate", "x = ", *ENGINE, "--regex", "a", "--choice", "b"])
    assert "not allowed with" in capsys.readouterr().err
