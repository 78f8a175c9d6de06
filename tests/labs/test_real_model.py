"""Chapters 44 and 45a run on a real model with one name changed, and chapter 00 asks it."""

from __future__ import annotations

import pytest
from labs.lint import chapters, read, source

from widgets.workers import raise_panel_errors

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.setenv("MINSERVE_HEADLESS", "1")
    monkeypatch.setenv("MINSERVE_PROGRESS", str(tmp_path / "progress.json"))


def run_with_real_model(number: str) -> dict[str, object]:
    """All names of a chapter after sections 1 to 6, with `NAME` set to the real model."""
    (path,) = [each for each in chapters() if each.name.startswith(number)]
    names: dict[str, object] = {}
    changed = 0
    for cell in read(path)["cells"]:
        text = source(cell)
        if "\n## 7 " in f"\n{text}":
            break
        if cell["cell_type"] != "code":
            continue
        changed += 'NAME = "zoo/base"' in text
        exec(text.replace('NAME = "zoo/base"', 'NAME = "zoo/smollm2"'), names)
    assert changed == 1, "the model is chosen in one place"
    raise_panel_errors()
    return names


@pytest.mark.parametrize(
    ("number", "metric", "most"), [("44", "ttft_p50_s", 0.5), ("45a", "steps", 0.7)]
)
def test_the_flip_has_its_effect_on_the_real_model_too(number, metric, most):
    result = run_with_real_model(number)["compare"].result
    assert result.agreement.held
    assert {trace.header.model for trace in result.traces.values()} == {"zoo/smollm2"}
    assert result.metrics[metric].verdict.ratio.median < most


def test_chapter_00_asks_a_model_that_knows_something(capsys):
    (path,) = [each for each in chapters() if each.name.startswith("00")]
    (cell,) = [each for each in read(path)["cells"] if "is_fetched" in source(each)]
    exec(source(cell), {})
    assert "Paris" in capsys.readouterr().out
