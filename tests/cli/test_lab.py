"""The doctor finds what would break a chapter, says what to do, and changes nothing."""

from __future__ import annotations

import json

import pytest
import torch

from minserve.__main__ import main
from minserve.cli import lab


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """No ceilings of this machine, no compiler run, and none of the known places."""
    monkeypatch.setenv("MINSERVE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("minserve.kernels.why_not_native", lambda: None)
    for name in ("VSCODE_PID", "TERM_PROGRAM", "BINDER_SERVICE_HOST", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(name, raising=False)


def finding(name: str) -> lab.Finding:
    return next(found for found in lab.examine() if found.name == name)


def test_a_machine_that_runs_these_tests_is_healthy(capsys):
    assert main(["lab", "doctor"]) == 0
    text = capsys.readouterr().out
    assert "The lab can run here." in text and "PROBLEM" not in text
    for name in ("ipywidgets", "anywidget", "plotly", "jupyterlab", "memory", "threads"):
        assert name in text


def test_json_says_the_same(capsys):
    assert main(["lab", "doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["healthy"] is True
    assert {found["name"] for found in told["findings"]} >= {"Python", "torch", "ceilings"}


@pytest.mark.parametrize(
    ("package", "version", "word"),
    [
        ("ipykernel", "7.0.1", "button"),
        ("plotly", "6.0.1", "before 6.1"),
        ("jupyterlab", "4.3.0", "needs"),
        ("anywidget", None, "not installed"),
    ],
)
def test_versions_that_break_the_lab_are_problems_with_a_way_out(
    capsys, monkeypatch, package, version, word
):
    real = lab.installed
    monkeypatch.setattr(lab, "installed", lambda name: version if name == package else real(name))
    found = finding(package)
    assert found.state == "problem" and word in found.text
    assert "pip install" in found.advice and package in found.advice
    assert main(["lab", "doctor"]) == 1
    assert "cannot run here as it is" in capsys.readouterr().out


def test_versions_are_judged_by_what_minserve_declares():
    wanted = lab.requirements()
    assert {"ipywidgets", "jupyterlab", "plotly", "anywidget", "torch"} <= set(wanted)
    assert "pytest" not in wanted and "fastapi" in wanted  # chapter 01 starts a server
    assert "!=7.0.*" in wanted["ipykernel"]


def test_chapters_without_their_files_are_a_problem_with_a_way_out(monkeypatch, tmp_path):
    assert finding("chapters' files").state == "ok"
    for name in ("questions", "exercises"):
        (tmp_path / "labs" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    found = finding("chapters' files")
    assert found.state == "problem" and str(tmp_path / "labs" / "recorded") in found.text
    assert "git checkout" in found.advice

    monkeypatch.setattr("widgets.notebooks.checkout.checkout_directory", lambda: None)
    found = finding("chapters' files")
    assert found.state == "problem" and 'pip install ".[lab]"' in found.text
    assert str(tmp_path) in found.text
    assert main(["lab", "doctor"]) == 1


@pytest.mark.parametrize(
    ("free", "state"), [(10**9, "problem"), (15 * 10**8, "note"), (8 * 10**9, "ok"), (None, "note")]
)
def test_memory_is_held_against_what_a_chapter_takes(monkeypatch, free, state):
    monkeypatch.setattr(lab, "available_bytes", lambda: free)
    assert finding("memory").state == state


def test_more_threads_than_a_container_allows_are_advised_against(monkeypatch):
    monkeypatch.setattr(lab, "allowed_cores", lambda: 1.5)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert "OMP_NUM_THREADS=1" in finding("threads").advice
    finally:
        torch.set_num_threads(before)


def test_ceilings_are_read_and_never_measured(monkeypatch):
    monkeypatch.setattr("minserve.hardware.measure_ceilings", lambda *a, **k: pytest.fail("no"))
    assert "not measured" in finding("ceilings").text


def test_a_missing_compiler_costs_speed_and_can_change_the_text(monkeypatch):
    reason = "there is no C++ compiler: install g++"
    monkeypatch.setattr("minserve.kernels.why_not_native", lambda: reason)
    found = finding("C++ operators")
    assert found.state == "note" and "g++" in found.text
    assert "slower" in found.advice and "in bfloat16 the text can change" in found.advice
    assert "same results" not in found.advice


def test_missing_weights_are_a_problem(monkeypatch, tmp_path):
    monkeypatch.setattr("minserve.loading.ZOO", tmp_path)
    assert finding("model zoo/base").state == "problem"


@pytest.mark.parametrize(
    ("variable", "value", "place", "word"),
    [
        ("COLAB_RELEASE_TAG", "x", "Google Colab", "enable_custom_widget_manager"),
        ("TERM_PROGRAM", "vscode", "VS Code", "kernel"),
        ("BINDER_SERVICE_HOST", "x", "Binder", "MINSERVE_CLOCK=virtual"),
    ],
)
def test_places_with_their_own_ways_get_their_own_advice(monkeypatch, variable, value, place, word):
    monkeypatch.setenv(variable, value)
    found = finding("place")
    assert found.text == place and word in found.advice


def test_svg_export_is_optional(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    found = finding("SVG export")
    assert found.state == "note" and "every chapter runs without" in found.advice
