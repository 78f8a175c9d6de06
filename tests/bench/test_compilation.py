"""The compilation benchmark measures what it says: cold, from the cache, and every kind of step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from minserve.bench.runs.compilation import SIDES
from minserve.config import EngineConfig

ROOT = Path(__file__).resolve().parents[2]


def test_sides_are_switches_of_the_engine():
    for switches in SIDES.values():
        assert EngineConfig().with_values(switches).kernels


@pytest.mark.slow
def test_a_new_process_compiles_and_the_next_one_finds_its_cache(tmp_path, monkeypatch):
    # From the shell, as a reader would: this process may have asked torch for its cache already.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "untouched"))
    path = tmp_path / "compile.json"
    command = "bench compile --model zoo/draft --rows 2 --tokens 3 --repeats 1 --no-progress --json"
    command = [sys.executable, "-m", "minserve", *command.split(), str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "even after tokens" in done.stderr
    found = json.loads(path.read_text())
    cold, warm = found["compilation"]["cold"], found["compilation"]["warm"]
    # Two halves of a layer and the first layer's, for one row and for several.
    assert cold["graphs"] == warm["graphs"] == 6
    assert cold["from_cache"] == 0 and warm["from_cache"] == 6
    assert found["same_tokens"] and found["steps"][0]["rows"] == 2
    assert {"eager", "compiled"} <= set(found["steps"][0]["step_s"])
    assert not (tmp_path / "untouched").exists()
