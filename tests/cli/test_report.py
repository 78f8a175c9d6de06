"""The line of figures never shows a share of limits that were not measured in peace."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from minserve import LLM, EngineConfig, SamplingParams
from minserve.cli.report import figures
from minserve.files import cache_dir
from minserve.hardware import Ceilings
from minserve.hardware import ceilings as module
from minserve.hardware.ceilings import BandwidthPoint, ProductPoint
from minserve.hardware.measure import Rate


def limits(per_s: float = 1e15) -> Ceilings:
    rate = Rate(per_s, per_s, per_s, "made up", 3)
    return Ceilings(
        processor="a processor", device="cpu", threads=1, torch_version="0", date="2026-01-01",
        quick=True, cpu_share=1.0, bandwidth=(BandwidthPoint(1 << 20, rate, rate),),
        matmul=(ProductPoint("float32", 1024, 1024, rate),), matvec=(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def llm():
    config = EngineConfig(dtype="float32", device="cpu")
    with LLM("zoo/base", config) as made:
        made.generate("x", SamplingParams(max_tokens=2, ignore_eos=True))
        yield made


class Measured:
    """Stands in for the measurement, and counts."""

    def __init__(self, found: Ceilings) -> None:
        self.found, self.times = found, 0

    def __call__(self, *args: object, **kwargs: object) -> Ceilings:
        self.times += 1
        return self.found


@pytest.fixture
def measure(monkeypatch, tmp_path):
    def use(found: Ceilings) -> Measured:
        measured = Measured(found)
        monkeypatch.setenv("MINSERVE_CACHE_DIR", str(tmp_path / "cache"))
        monkeypatch.setattr(module, "measure_ceilings", measured)
        return measured

    return use


def test_a_busy_machine_is_measured_once_in_a_process_and_gives_no_share(llm, measure, capsys):
    measured = measure(replace(limits(), cpu_share=0.3))
    for _ in range(3):
        line = figures(llm)
        assert "busy while its limits were measured" in line and "%" not in line
    assert measured.times == 1
    assert capsys.readouterr().err.count("measuring this machine's limits") == 1


def test_a_quiet_machine_gives_a_share_and_keeps_its_limits(llm, measure, tmp_path):
    measured = measure(limits())
    shares = [re.search(r"(\d+)% of this machine's roofline", figures(llm)) for _ in range(2)]
    assert all(found is not None and int(found[1]) <= 100 for found in shares)
    assert measured.times == 1 and len(list((tmp_path / "cache").iterdir())) == 1


def test_more_than_all_of_the_roofline_is_no_share(llm, measure):
    measure(limits(per_s=1e3))
    line = figures(llm)
    assert "faster than this machine's measured limits" in line and "%" not in line


def test_limits_that_cannot_be_kept_last_as_long_as_the_process(llm, measure, tmp_path):
    cache_dir.say_once.cache_clear()
    measured = measure(limits())
    (tmp_path / "cache").touch()
    with pytest.warns(UserWarning, match="ceilings of this machine cannot be kept"):
        figures(llm)
    figures(llm)
    assert measured.times == 1
    module.machine_ceilings("cpu", dtypes=("float32",), refresh=True)
    assert measured.times == 2
