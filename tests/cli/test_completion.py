"""Completion scripts, asked as a shell asks them, and compared with the parsers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from minserve.__main__ import main
from minserve.cli.completion.command import tree
from minserve.cli.parser import COMMANDS
from minserve.config import describe
from minserve.loading import FETCHABLE, ZOO

SHELLS = ("bash", "zsh", "fish")
SHIPPED = sorted(f"zoo/{path.parent.name}" for path in ZOO.glob("*/config.json"))
MODELS = [*SHIPPED, *(f"zoo/{name}" for name in FETCHABLE)]

ASK = r"""
source "$1"; shift
complete -p minserve
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_minserve
printf '%s\n' "${COMPREPLY[@]}"
"""
"""What bash does when TAB is pressed behind the words."""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory) -> dict[str, Path]:
    """Shell -> the file that a user would keep."""
    folder = tmp_path_factory.mktemp("completion")
    made = {}
    for shell in SHELLS:
        command = ["python", "-m", "minserve", "completion", shell]
        made[shell] = folder / shell
        with pytest.MonkeyPatch.context() as patch, made[shell].open("w") as file:
            patch.setattr("sys.stdout", file)
            assert main(command[3:]) == 0
    return made


@pytest.fixture
def ask(scripts, tmp_path):
    """What bash proposes after some words; the last is the one at the cursor."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")

    def proposals(*words: str) -> list[str]:
        command = [bash, "--norc", "-c", ASK, "bash", str(scripts["bash"]), "minserve", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
        assert done.stderr.replace(COMPOPT, "") == ""
        registered, *found = done.stdout.splitlines()
        assert registered == "complete -F _minserve minserve"
        return [word for word in found if word]

    return proposals


COMPOPT = "bash: line 5: compopt: not currently executing completion function\n"


def test_bash_proposes_the_commands(ask):
    assert ask("") == list(COMMANDS)
    assert ask("z") == ["zoo"]
    assert ask("--v") == ["--version"]


def test_bash_proposes_the_sub_commands(ask):
    assert {"offline", "latency", "serve", "memory", "memory-sweep"} <= set(ask("bench", ""))
    assert ask("bench", "mem") == ["memory", "memory-sweep"]
    assert ask("zoo", "") == ["list", "fetch", "evaluate"]
    assert ask("zoo", "fetch", "") == ["smollm2"]
    assert ask("lab", "") == ["doctor", "grade"]
    assert ask("completion", "") == list(SHELLS)


def test_bash_proposes_every_field_of_the_configuration(ask):
    flags = {knob.flag for knob in describe()}
    assert flags <= set(ask("generate", "a prompt", "--"))
    assert "--no-ceilings" in ask("info", "--no-c")


def test_bash_proposes_the_choices_of_an_option_and_nothing_else(ask):
    for knob in describe():
        if knob.choices:
            assert ask("generate", knob.flag, "") == [str(choice) for choice in knob.choices]
    assert ask("chat", "--dtype", "float3") == ["float32"]
    assert ask("chat", "--dtype", "=", "float3") == ["float32"]
    assert ask("chat", "--dtype", "=") == ask("chat", "--dtype", "")
    assert ask("chat", "--max-tokens", "") == []


def test_bash_proposes_the_models_of_the_zoo_and_directories(ask, tmp_path):
    (tmp_path / "zoo-of-mine").mkdir()
    assert ask("generate", "--model", "zoo") == [*MODELS, "zoo-of-mine"]
    assert ask("zoo", "evaluate", "zoo/b") == ["zoo/base"]
    assert ask("zoo", "evaluate", "--base", "zoo/") == MODELS


def test_bash_proposes_files_where_a_file_is_expected(ask, tmp_path):
    (tmp_path / "run one.json").write_text("")
    assert ask("generate", "--trace-file", "run") == ["run one.json"]
    assert ask("bench", "offline", "--json", "run") == ["run one.json"]
    assert ask("bench", "gpu", "--out", "r") == ["run one.json"]


def test_bash_takes_a_prompt_for_no_command(ask):
    assert ask("generate", "bench", "") == []
    assert "--quiet" in ask("generate", "bench", "--q")


def test_a_hidden_option_is_not_proposed(ask):
    assert "--child" not in ask("bench", "gpu", "--")


def test_help_is_in_no_script_twice():
    def walk(command):
        yield command
        for each in command.commands:
            yield from walk(each)

    for command in walk(tree()):
        flags = [flag for option in command.options for flag in option.flags]
        assert len(flags) == len(set(flags)) and "--help" in flags


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_itself_can_read_its_script(scripts, shell):
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"there is no {shell}")
    done = subprocess.run([found, "-n", str(scripts[shell])], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_fish_proposes_commands_and_choices(scripts, tmp_path):
    fish = shutil.which("fish")
    if fish is None:
        pytest.skip("there is no fish")

    def proposals(line: str) -> list[str]:
        code = f"source {scripts['fish']}; complete -C {line!r}"
        home = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
        done = subprocess.run([fish, "-c", code], capture_output=True, text=True, env=home)
        assert done.stderr == ""
        return [line.split("\t")[0] for line in done.stdout.splitlines()]

    assert set(proposals("minserve ")) == set(COMMANDS)
    assert proposals("minserve bench mem") == ["memory", "memory-sweep"]
    assert proposals("minserve chat --dtype float3") == ["float32"]
    assert set(MODELS) <= set(proposals("minserve generate --model zoo/"))
    assert "--block-size" in proposals("minserve generate x --blo")
