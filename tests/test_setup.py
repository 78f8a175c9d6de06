"""`make setup` does what it says: a moved checkout, another build of torch, an unknown one.

The Makefile and its script are the real ones; Python, pip and uv are fakes that write down how they
were called. One test moves a real environment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.read_only import read_only

ROOT = Path(__file__).resolve().parent.parent
FILES = (
    "Makefile", "pyproject.toml", "constraints.txt", "labs/tools/setup.sh", "labs/tools/moved.py",
)  # fmt: skip
PINS = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
PINNED = next(line for line in PINS if line.startswith("torch=="))

# Stands for the system's Python and for that of .venv; `-m venv` makes an environment of fakes.
FAKE = """#!/bin/sh
echo "$*" >> "{log}"
[ -z "$FAIL" ] || case "$*" in *"$FAIL"*) exit 1 ;; esac
case "$*" in
  "-m venv "*)
    for each; do :; done
    [ -e $each/bin/pip ] && exit 0
    mkdir -p $each/bin
    cp "{fakes}/python3" $each/bin/python
    cp "{fakes}/python3" $each/bin/uv
    printf '#!%s/bin/python3\\npip\\n' "$PWD/$each" > $each/bin/pip
    printf '#!%s/bin/python3\\nmypy\\n' "$PWD/$each" > $each/bin/mypy ;;
  *_base_executable*) echo "{fakes}/python3" ;;
  *moved.py*) exec "{python}" "$@" ;;
esac
"""


class Checkout:
    """A checkout whose `make` runs with the fakes; `log` has the calls of the last one."""

    def __init__(self, root: Path, fakes: Path) -> None:
        self.root, self.fakes, self.log = root, fakes, fakes / "log"
        for name in FILES:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
        fakes.mkdir()
        text = FAKE.format(log=self.log, fakes=fakes, python=sys.executable)
        (fakes / "python3").write_text(text)
        (fakes / "python3").chmod(0o755)

    def make(self, *words: str, code: int = 0, fail: str = "", before: Sequence[str] = ()) -> str:
        """All that `make setup WORDS` says."""
        self.log.write_text("")
        command = [*before, "make", "--no-print-directory", "setup", *words]
        environment = {"PATH": f"{self.fakes}:{os.environ['PATH']}", "FAIL": fail}
        done = subprocess.run(
            command, cwd=self.root, env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode != 0) == (code != 0), done.stdout + done.stderr
        return done.stdout + done.stderr

    def called(self, words: str) -> bool:
        return words in self.log.read_text()

    def move(self, name: str) -> None:
        self.root = self.root.rename(self.root.with_name(name))


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    (tmp_path / "clone").mkdir()
    return Checkout(tmp_path / "clone", tmp_path / "fakes")


INSTALL = "-m pip install --quiet -c constraints.txt -e .[dev]"


def test_a_second_setup_does_and_says_nothing(checkout: Checkout):
    assert "Ready: .venv" in checkout.make()
    assert checkout.called("-m venv .venv") and checkout.called(INSTALL)
    assert not checkout.called(PINNED)
    assert checkout.make() == "" and not checkout.called("pip")
    assert checkout.make("TORCH=default") == ""


def test_the_real_model_is_fetched_when_it_is_asked_for(checkout: Checkout):
    fetching = "-m minserve zoo fetch smollm2"
    checkout.make()
    assert not checkout.called(fetching)
    checkout.make("REAL=1")
    assert checkout.called(fetching)
    assert "Error" in checkout.make("REAL=1", code=2, fail=fetching)


def test_changed_pins_are_installed_and_the_build_of_torch_stays(checkout: Checkout):
    checkout.make("TORCH=cpu")
    with (checkout.root / "constraints.txt").open("a") as pins:
        pins.write("another==1\n")
    assert "Ready" in checkout.make()
    assert checkout.called(INSTALL) and not checkout.called(PINNED)
    assert checkout.make("TORCH=cpu") == ""


def test_the_cpu_build_is_installed_after_a_finished_setup_and_back(checkout: Checkout):
    checkout.make()
    said = checkout.make("TORCH=cpu")
    assert "torch is changed from the build 'default' to 'cpu'" in said and "distclean" in said
    assert checkout.called(f"--torch-backend=cpu --reinstall-package torch {PINNED}")
    assert checkout.make() == checkout.make("TORCH=cpu") == ""
    assert "from the build 'cpu' to 'default'" in checkout.make("TORCH=default")
    assert checkout.called(f"--force-reinstall --no-deps {PINNED}") and checkout.called(INSTALL)
    assert checkout.make() == ""


def test_a_setup_of_an_earlier_version_is_taken_as_it_is(checkout: Checkout):
    checkout.make()
    (checkout.root / ".venv" / ".minserve-torch").write_text("")
    assert checkout.make() == ""
    assert "from the build 'default' to 'cpu'" in checkout.make("TORCH=cpu")


def test_a_change_that_fails_is_tried_again_and_never_called_ready(checkout: Checkout):
    checkout.make()
    assert "Ready" not in checkout.make("TORCH=cpu", code=2, fail="--torch-backend=cpu")
    assert "Ready" in checkout.make("TORCH=cpu") and checkout.called(PINNED)


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("name", ["rocm", "CPU", "cpu default"])
def test_an_unknown_build_is_refused_with_those_there_are(
    checkout: Checkout, name: str, finished: bool
):
    if finished:
        checkout.make()
    said = checkout.make(f"TORCH={name}", code=2)
    assert f"TORCH={name} is not known" in said and "cpu" in said and "default" in said
    assert checkout.log.read_text() == ""
    assert (checkout.root / ".venv").exists() == finished


@pytest.mark.parametrize("name", ["renamed", "with a space", "x" * 140])
def test_a_moved_checkout_is_adapted_without_the_network(checkout: Checkout, name: str):
    checkout.make("TORCH=cpu")
    checkout.move(name)
    said = checkout.make()
    assert f"moved or copied: .venv is adapted to {checkout.root}" in said
    assert checkout.called("--no-deps --no-build-isolation -e .") and not checkout.called(INSTALL)
    scripts = [(checkout.root / ".venv/bin" / each).read_text() for each in ("pip", "mypy")]
    assert all(f"{checkout.root}/.venv/bin/python3" in text for text in scripts)
    assert scripts[1].endswith("\nmypy\n") and "/clone/" not in "".join(scripts)
    assert checkout.make() == ""
    checkout.move("clone")
    assert "moved" in checkout.make()
    assert (checkout.root / ".venv/bin/mypy").read_text().startswith(f"#!{checkout.root}/")


def test_a_moved_checkout_that_cannot_be_adapted_is_set_up_anew(checkout: Checkout):
    checkout.make("TORCH=cpu")
    checkout.move("renamed")
    (checkout.root / ".venv/bin/pip").write_text("something else\n")
    assert "is made anew" in checkout.make()
    assert checkout.called("-m venv .venv") and checkout.called(INSTALL)
    assert checkout.make("TORCH=cpu") == ""


def test_an_environment_whose_python_is_gone_is_made_anew(checkout: Checkout):
    checkout.make()
    (checkout.root / ".venv/bin/python").unlink()
    (checkout.root / ".venv/bin/python").symlink_to("/nowhere/python3")
    assert "does not run" in checkout.make()
    assert checkout.called("-m venv .venv") and checkout.called(INSTALL)
    assert checkout.make() == ""


def test_no_python_is_said_in_a_sentence(checkout: Checkout):
    said = checkout.make("PYTHON=/nowhere/python3.9", code=2)
    assert "none of these is one: /nowhere/python3.9" in said and "make setup PYTHON=" in said


@pytest.mark.parametrize("name", ["my python", "o'brien", "a,b", "$HOME (1)"])
def test_the_python_that_is_named_may_lie_anywhere(checkout: Checkout, tmp_path: Path, name: str):
    (tmp_path / name).mkdir()
    named = tmp_path / name / "python3"
    shutil.copy(checkout.fakes / "python3", named)
    assert "Ready" in checkout.make("PYTHON=" + str(named).replace("$", "$$"))


def test_the_named_python_is_the_only_one_that_is_tried(checkout: Checkout):
    said = checkout.make("PYTHON=/nowhere/of mine python3", code=2)
    assert "none of these is one: /nowhere/of mine python3." in said
    assert not (checkout.root / ".venv").exists()


@pytest.mark.parametrize("name", ["o'brien", "my disk", "a,b", "x; touch bad", "`touch bad`"])
def test_where_copies_lie_reaches_the_lab_as_it_was_said(checkout: Checkout, name: str):
    checkout.make()
    words = ["lab", f"WORK=/{name}"]
    checkout.make(*words)
    assert checkout.called(f"labs/open_lab.py --work /{name}")
    checkout.make("reset", f"CHAPTER={name}")
    assert checkout.called(f"--reset {name}")
    assert "TORCH=" in checkout.make(f"TORCH={name}", code=2)
    assert not (checkout.root / "bad").exists()


@pytest.mark.parametrize("name", ["renamed", "with a space"])
def test_programs_of_a_real_environment_run_after_a_move(tmp_path: Path, name: str):
    """pip's own program, and one that was installed; the environment has nothing else."""
    old, new = tmp_path / "clone", tmp_path / name
    subprocess.run([sys.executable, "-m", "venv", str(old / ".venv")], check=True)
    old.rename(new)
    python, pip = new / ".venv/bin/python", new / ".venv/bin/pip"
    with pytest.raises(OSError):
        subprocess.run([str(pip), "--version"], capture_output=True, check=True)
    adapt = [str(python), str(ROOT / "labs/tools/moved.py"), str(new / ".venv")]
    subprocess.run(adapt, check=True)
    said = subprocess.run([str(pip), "--version"], capture_output=True, text=True, check=True)
    inside = sysconfig.get_path("purelib", vars={"base": str(new / ".venv")})
    assert inside in said.stdout


def test_a_finished_setup_is_used_read_only_and_a_missing_one_is_explained(checkout: Checkout):
    with read_only(checkout.root) as before:
        said = checkout.make(code=2, before=before)
        assert f"{checkout.root} cannot be written to" in said
        assert not checkout.called("-m venv")
    checkout.make()
    with read_only(checkout.root) as before:
        assert checkout.make(before=before) == ""
        assert "cannot be written to" in checkout.make("TORCH=cpu", code=2, before=before)
