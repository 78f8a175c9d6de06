"""Spinning is bounded before torch is imported, and what the user set stays."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minserve.process.openmp import CHOICES, SPIN_COUNT, VARIABLE, set_spin_count, user_chose

OURS = {VARIABLE: str(SPIN_COUNT)}
CHOSEN = [
    {VARIABLE: "7"},
    {VARIABLE: "infinity"},
    {VARIABLE: ""},
    {"OMP_WAIT_POLICY": "ACTIVE"},
    {"OMP_WAIT_POLICY": "passive"},
    OURS | {"OMP_WAIT_POLICY": "PASSIVE"},
]


@pytest.mark.parametrize("environment", CHOSEN, ids=str)
def test_what_the_user_set_stays(environment: dict[str, str]) -> None:
    before = dict(environment)
    assert user_chose(environment)
    set_spin_count(environment)
    assert environment == before


@pytest.mark.parametrize("environment", [{}, OURS], ids=str)
def test_what_nobody_set_is_ours(environment: dict[str, str]) -> None:
    environment = environment | {"OMP_NUM_THREADS": "2"}
    assert not user_chose(environment)
    set_spin_count(environment)
    set_spin_count(environment)
    assert environment == OURS | {"OMP_NUM_THREADS": "2"}


def python(code: str, **variables: str) -> str:
    """What `code` prints in a process without any of the variables but these."""
    environment = {name: text for name, text in os.environ.items() if name not in CHOICES}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | variables, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return done.stdout.strip()


SHOW = f"import os; print(os.environ.get({VARIABLE!r}), 'torch' in sys.modules)"
# A stand-in, so that the test does not wait for torch.
STAND_IN = "import sys, types; sys.modules['torch'] = types.ModuleType('torch');"


@pytest.mark.parametrize("module", ["minserve", "minserve.trace", "minserve.__main__"])
def test_importing_minserve_bounds_spinning_before_torch(module: str) -> None:
    assert python(f"import sys, {module}; {SHOW}").startswith(f"{SPIN_COUNT} ")
    assert python(f"import sys, minserve; {SHOW}") == f"{SPIN_COUNT} False"


def test_torch_sees_it_when_it_is_imported_after_minserve() -> None:
    code = (
        "import sys, os, minserve\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        f"            print(os.environ.get({VARIABLE!r}))\n"
        "            sys.exit()\n"
        "sys.meta_path.insert(0, Finder())\n"
        "import minserve.batch"
    )
    assert python(code) == str(SPIN_COUNT)


def test_importing_minserve_keeps_what_is_set() -> None:
    assert python(f"import sys, minserve; {SHOW}", GOMP_SPINCOUNT="5") == "5 False"
    assert python(f"import sys, minserve; {SHOW}", OMP_WAIT_POLICY="ACTIVE") == "None False"


def test_after_torch_nothing_is_set_and_info_says_so() -> None:
    printed = python(f"{STAND_IN} import minserve; {SHOW}; print(minserve.OPENMP)")
    assert printed.startswith("None True") and "import minserve first" in printed


def test_the_kernels_of_jupyterlab_inherit_it(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(__file__).resolve().parents[2] / "labs/open_lab.py"
    spec = importlib.util.spec_from_file_location("open_lab_for_openmp", path)
    assert spec is not None and spec.loader is not None
    open_lab = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, open_lab)
    spec.loader.exec_module(open_lab)
    started: list[dict[str, str]] = []
    monkeypatch.setattr(os, "name", "posix")

    def execve(program: str, words: list[str], environment: dict[str, str]) -> None:
        started.append(environment)
        raise SystemExit  # The process would be another one now.

    monkeypatch.setattr(os, "execve", execve)
    for name in CHOICES:
        monkeypatch.delenv(name, raising=False)
    for value in (None, "PASSIVE"):
        if value is not None:
            monkeypatch.setenv("OMP_WAIT_POLICY", value)
        with pytest.raises(SystemExit):
            open_lab.launch(["jupyter"], Path("work"))
    first, second = started
    assert first[VARIABLE] == str(SPIN_COUNT) and first["PATH"] == os.environ["PATH"]
    assert VARIABLE not in second and second["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc here")
def test_a_team_that_waits_is_given_back_and_comes_again():
    script = """
import os, time, torch
from minserve.process.openmp import release_team
torch.set_num_threads(2)
a = torch.ones(600, 600)
count = lambda: len(os.listdir("/proc/self/task"))
before = count(); (a @ a).sum(); working = count()
if release_team():
    deadline = time.monotonic() + 5
    while count() >= working and time.monotonic() < deadline: time.sleep(0.01)
    assert count() == working - 1, (before, working, count())
    assert float((a @ a).sum()) == 600.0**3 and count() == working
else:
    assert not any("libgomp" in line for line in open("/proc/self/maps"))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120)
    assert not done.returncode, done.stderr.decode()
