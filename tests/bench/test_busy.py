"""The busy benchmark: sides by wait policy, neighbours that are always ended. Judges no speed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from minserve.__main__ import main
from minserve.bench.runs import busy
from minserve.bench.runs.busy import BusySide, BusySideError, add_arguments, neighbours, sides
from minserve.config import ConfigError
from minserve.process.openmp import VARIABLE, user_chose


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def test_neighbours_are_ended_when_a_measurement_fails() -> None:
    with pytest.raises(KeyboardInterrupt), neighbours(2) as running:
        assert [process.poll() for process in running] == [None, None]
        raise KeyboardInterrupt
    assert all(process.poll() is not None for process in running)


def test_only_our_side_follows_the_load() -> None:
    follows = [name for name, (environment, _) in sides(2).items() if not user_chose(environment)]
    assert follows == ["minserve", "one thread"]


@pytest.mark.usefixtures("stand_in")
def test_the_command_reports_every_side_alone_and_beside_neighbours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "result.json"
    words = ["--repeats", "2", "--neighbours", "0", "1", "--json", str(path), "--no-progress"]
    assert main(["bench", "busy", *words]) == 0
    result = json.loads(path.read_text(encoding="utf-8"))
    assert len(result["measurements"]) == 2 * 2 * len(sides(2))
    for each in result["measurements"]:
        assert each["tokens_per_s"]["values"] and each["times_before"]["median"] > 0
    table = capsys.readouterr().err
    assert all(name in table for name in sides(2)) and "CPU-ms a token" in table


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sides that measure nothing, on a machine of two cores."""

    class Side:
        def __init__(self, model: str, environment: dict[str, str], threads: int) -> None:
            self.speed = float(len(environment.get(VARIABLE, "")) + threads)

        def measure(self, rows: int, tokens: int, seconds: float) -> dict[str, float]:
            return {"tokens_per_s": self.speed * rows, "cpu_ms_per_token": 1.0}

        def close(self) -> None:
            pass

    monkeypatch.setattr(busy, "BusySide", Side)
    monkeypatch.setattr(busy, "_cores", lambda: 2)


@pytest.mark.usefixtures("stand_in")
def test_a_side_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="'pasive': there are 'long spin'"):
        busy.run(arguments("--only", "pasive"))


def test_one_core_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy, "_cores", lambda: 1)
    with pytest.raises(ConfigError, match="needs two cores"):
        busy.run(arguments())


def test_a_side_generates_in_a_process_of_its_own() -> None:
    side = BusySide("zoo/draft", {VARIABLE: "10"}, 1)
    try:
        measured = side.measure(2, 3, 0.0)
        assert measured["tokens_per_s"] > 0 and measured["cpu_ms_per_token"] > 0
    finally:
        side.close()


def test_a_side_that_ends_says_why() -> None:
    with pytest.raises(BusySideError, match="no model 'zoo/none'"):
        BusySide("zoo/none", {}, 1)
