"""The kernels' tests, as the suite starts them: found, shared out, read, without hypothesis."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import without_hypothesis as plain

from minserve.bench.gpu.cases.kernel_tests import _collect, _run, parse, test_files
from minserve.clock import WallClock

# The name says what it finds; it is no test.
test_files.__test__ = False  # type: ignore[attr-defined]
ROOT = Path(__file__).resolve().parents[3]

SAID = """
tests/kernels/test_triton_gpu.py::test_a[torch.bfloat16] PASSED          [ 10%]
tests/kernels/test_triton_gpu.py::test_b[torch.float16-(5, 1)] FAILED    [ 20%]
tests/test_hardware.py::test_c SKIPPED (needs a CUDA device)             [ 30%]
tests/test_hardware.py::test_d
E   RuntimeError: an illegal memory access
"""


def test_outcomes_are_read_however_far_pytest_came() -> None:
    found = parse(SAID)
    names = [name.split("::")[1] for name in found]
    assert names == ["test_a[torch.bfloat16]", "test_b[torch.float16-(5, 1)]", "test_c"]
    assert [outcome for outcome, _ in found.values()] == ["PASSED", "FAILED", "SKIPPED"]
    assert "illegal memory access" in list(found.values())[1][1]


def test_files_with_gpu_tests_are_found() -> None:
    assert "tests/kernels/test_triton_gpu.py" in test_files()


@pytest.mark.slow
def test_they_are_collected_on_a_machine_that_has_pytest_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hypothesis").mkdir()
    (tmp_path / "hypothesis" / "__init__.py").write_text("raise ImportError('not here')\n")
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    ids = _collect(test_files())
    assert any("test_attention_is_its_definition" in each for each in ids)
    assert any("test_ceilings_of_a_gpu" in each for each in ids)
    # Started as for a GPU, and skipped where there is none.
    clock = WallClock()
    for outcome, text in _run([ids[:2], ids[2:3]], 120.0, clock).values():
        assert outcome in ("SKIPPED", "PASSED"), text
    assert _run([ids[:1]], 0.0, clock) == {}, "what is not done in time is not counted"
    # Where there is no GPU, another test draws its batches from the stand-in.
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    words += ["-p", "no:schemathesis"]
    words += ["tests/attention/test_paged.py"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_stand_in_draws_within_bounds_and_repeats_itself() -> None:
    seen: list[tuple[int, list[bool], int]] = []

    @plain.composite
    def pairs(draw, most):
        low = draw(plain.integers(1, most))
        return low, draw(plain.integers(low, most))

    @plain.given(
        pair=pairs(9).flatmap(lambda pair: plain.tuples(plain.just(pair), plain.booleans())),
        flags=plain.lists(plain.booleans(), min_size=2, max_size=2),
    )
    @plain.settings(max_examples=30, deadline=None)
    def check(fixed, pair, flags):
        (low, high), _ = pair
        assert 1 <= low <= high <= 9 and len(flags) == 2 and fixed == "given"
        seen.append((low, flags, high))

    check(fixed="given")
    first = list(seen)
    seen.clear()
    check("given")
    assert seen == first and len(first) == 30 and len({low for low, _, _ in first}) > 3


def test_a_file_that_needs_more_than_the_stand_in_has_is_skipped_and_says_why(monkeypatch) -> None:
    for name in ("hypothesis", "hypothesis.strategies", "hypothesis.stateful"):
        monkeypatch.setitem(sys.modules, name, None)
    plain.install()
    from hypothesis import given, settings, strategies

    assert importlib.util.find_spec("hypothesis") is not None, "as torch._dynamo looks for it"
    assert given is plain.given and settings is plain.settings
    assert strategies.integers is plain.integers
    for ask in ("from hypothesis import Phase", "from hypothesis.stateful import rule"):
        wanted = rf"needs hypothesis, for {ask.split()[1]}\.{ask.split()[-1]}"
        with pytest.raises(pytest.skip.Exception, match=wanted):
            exec(compile(ask, __file__, "exec"))
    assert eval(compile("hasattr(asked, 'torch')", "a library", "eval"), {"asked": strategies}) is (
        False
    ), "what is no test is told no"
    with pytest.raises(pytest.skip.Exception, match=r"for hypothesis\.strategies\.data"):
        strategies.data()


def test_the_stand_in_names_the_example_that_failed() -> None:
    @plain.given(plain.integers(0, 5))
    def check(value):
        assert value < 3

    with pytest.raises(AssertionError) as caught:
        check()
    assert "drawn, example" in caught.value.__notes__[0]
