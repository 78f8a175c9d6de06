"""The suite continues where it was killed, survives a part that raises, and explains itself."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minserve.bench.gpu import command, parts, report
from minserve.bench.gpu.record import load
from minserve.bench.gpu.setting import Setting
from minserve.clock import VirtualClock, WallClock

ROOT = Path(__file__).resolve().parents[3]
NAMES = list(parts.PARTS)


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([*words, "--commit", "abc"])


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Parts that only write down that they ran; `broken` raises."""
    done: list[str] = []

    def run_of(self: parts.Part):
        def run(setting: Setting) -> None:
            done.append(self.name)
            setting.record.add({"name": self.name})
            if self.name == "prefill" and done.count("prefill") == 1:
                raise RuntimeError("no such kernel in /opt/somewhere/lib.so")

        return run

    monkeypatch.setattr(parts.Part, "run", property(run_of))
    return done


def here(part: parts.Part, folder: Path, args: argparse.Namespace, limit_s: float) -> int:
    return command.run_part(part, folder, args, WallClock())


def test_a_part_that_raises_is_recorded_and_the_others_still_run(
    tmp_path: Path, ran: list[str]
) -> None:
    args = arguments("--dry-run")
    chosen = list(parts.PARTS.values())
    assert command.run_parts(chosen, tmp_path, args, WallClock(), here) == ["prefill"]
    assert ran == NAMES
    data = load(tmp_path / "prefill.json")
    assert data is not None and data["status"] == "failed"
    assert data["error"] == "RuntimeError: no such kernel in lib.so"
    assert data["rows"] == [{"name": "prefill"}], "what it had measured stays"
    # The next call runs only what is missing.
    assert command.run_parts(chosen, tmp_path, args, WallClock(), here) == []
    assert ran == [*NAMES, "prefill"]


def test_a_killed_suite_continues_with_the_part_it_was_killed_in(
    tmp_path: Path, ran: list[str]
) -> None:
    args, chosen = arguments("--dry-run"), list(parts.PARTS.values())[:4]

    def killed_in_the_third(part: parts.Part, *rest: object) -> int:
        if part.name == NAMES[2]:
            raise KeyboardInterrupt
        return here(part, *rest)

    with pytest.raises(KeyboardInterrupt):
        command.run_parts(chosen, tmp_path, args, WallClock(), killed_in_the_third)
    assert ran == NAMES[:2]
    command.run_parts(chosen, tmp_path, args, WallClock(), here)
    assert ran == NAMES[:4]
    command.run_parts(chosen, tmp_path, args, WallClock(), here)
    assert ran == NAMES[:4], "everything was there"
    fresh = arguments("--dry-run", "--fresh")
    command.run_parts(chosen[:1], tmp_path, fresh, WallClock(), here)
    assert ran == [*NAMES[:4], NAMES[0]]


def test_a_process_that_ends_without_a_word_is_a_failure(tmp_path: Path) -> None:
    args, part = arguments("--dry-run"), parts.PARTS["stream"]
    for code, sentence in (
        (command.OUT_OF_TIME, "ended because its time was over"),
        (-11, "ended by signal 11"),
        (3, "ended with exit code 3"),
    ):
        found = command.run_parts(
            [part], tmp_path, args, VirtualClock(), lambda *_, code=code: code
        )
        assert found == ["stream"]
        data = load(tmp_path / "stream.json")
        assert data is not None and data["status"] == "failed"
        assert data["error"].startswith(f"the process of this part {sentence}")


def test_the_whole_fits_in_nine_minutes(tmp_path: Path) -> None:
    chosen = [parts.PARTS[name] for name in parts.DEFAULT]
    assert sum(part.limit_s for part in chosen) < parts.TOTAL_S < 9 * 60
    clock, limits = VirtualClock(), []

    def slow(part: parts.Part, folder: Path, args: argparse.Namespace, limit_s: float) -> int:
        limits.append(limit_s)
        clock.advance(limit_s)
        return command.OUT_OF_TIME

    failed = command.run_parts(chosen, tmp_path, arguments("--dry-run"), clock, slow)
    assert sum(limits) <= parts.TOTAL_S and len(failed) == len(chosen)
    # What there was no time for is not begun; the same command continues with it.
    assert len(limits) < len(chosen) and min(limits) >= 2 * parts.GRACE_S


def test_a_machine_without_cuda_is_told_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert command.run(arguments()) == 2
    said = capsys.readouterr().err
    assert "sees no CUDA device here" in said
    assert "make gpu PYTHON=python3" in said and "--dry-run --out" in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["kernel"], "there is no part 'kernel'; there are ceilings, kernels"),
        (["--dry-run"], "must not stand among recorded ones"),
        (["--device", "cpu"], "--device cpu: expected cuda or cuda:N"),
    ],
)
def test_what_cannot_be_asked_is_said_in_a_sentence(
    capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert command.run(arguments(*words)) == 2
    assert sentence in capsys.readouterr().err


def test_a_home_that_cannot_be_written_costs_no_compiled_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command.caches({}) == {}
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    named = command.caches({"MINSERVE_CACHE_DIR": "elsewhere"})
    assert set(named) == {"TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"}
    assert len(set(named.values())) == 2


def test_where_nothing_is_recorded_every_table_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.run(arguments("--show", "--out", str(tmp_path))) == 0
    said = capsys.readouterr().out
    assert said.count("not yet recorded") == len(NAMES)
    for name in NAMES:
        assert f"make gpu PARTS={name}" in said


def test_every_part_has_its_columns() -> None:
    assert set(report.COLUMNS) == set(parts.PARTS)


@pytest.mark.slow
def test_a_suite_killed_for_good_leaves_no_process_behind_and_goes_on(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "minserve.bench.gpu", "--dry-run", "--out", str(tmp_path)]
    words += ["--commit", "abc", "ceilings", "virtual_clock"]
    suite = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "virtual_clock.json").exists():
        assert suite.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    suite.send_signal(signal.SIGKILL)
    suite.wait()
    before = (tmp_path / "ceilings.json").read_text()
    if sys.platform == "linux":
        while children_of_nobody():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert json.loads((tmp_path / "virtual_clock.json").read_text())["status"] == "running"
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ceilings: recorded already" in done.stderr
    assert (tmp_path / "ceilings.json").read_text() == before
    assert json.loads((tmp_path / "virtual_clock.json").read_text())["status"] == "done"
    assert "recorded already" not in done.stdout and "DRY RUN" in done.stdout


def children_of_nobody() -> list[str]:
    """Command lines of parts whose suite is gone. Ended by the kernel, not by their own end: that
    would take longer than anybody waits here, were they at real sizes."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        orphan = parent == 1 or not os.path.exists(f"/proc/{parent}")
        if "--child" in words and "virtual_clock" in words and orphan:
            found.append(" ".join(words))
    return found


def test_the_page_on_gpus_says_of_every_part_whether_it_is_recorded() -> None:
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    for name in NAMES:
        (line,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        recorded = load(ROOT / "labs" / "recorded" / "gpu" / f"{name}.json") is not None
        assert ("not yet recorded" in line) != recorded, f"the row of {name} in docs/gpu.md"
