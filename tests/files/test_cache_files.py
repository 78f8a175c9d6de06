"""Whatever became of a cache file, it is read as it was written or measured again: never a wrong
number, never an exception."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minserve.bench.gpu.record import SCHEMA, load
from minserve.bench.gpu.record import VERSION as RECORD_VERSION
from minserve.bench.gpu.recorded import DamagedRecordingError, cost_path, step_cost
from minserve.bench.modelling.fitted_cost import FittedCost, Machine
from minserve.files import cache_dir
from minserve.hardware import ceilings
from minserve.hardware.ceilings import BandwidthPoint, Ceilings, ProductPoint
from minserve.hardware.measure import Rate

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore::minserve.files.cache_dir.CacheWarning")


def limits() -> Ceilings:
    rate = Rate(2e9, 1.5e9, 1e9, "made up", 3)
    points = tuple(BandwidthPoint(1 << size, rate, rate) for size in (20, 22))
    product = ProductPoint("float32", 1024, 64, rate)
    return Ceilings(
        processor="a processor", device="cpu", threads=1, torch_version="0", date="2026-01-01",
        quick=True, cpu_share=None, bandwidth=points, matmul=(product,), matvec=(product,),
    )  # fmt: skip


COST = FittedCost(
    Machine("a processor", "zoo/base", 1, "2", "2026-01-01"), "float32",
    tuple(1e-6 * n for n in range(16)), 1e-4, 500, 0.03,
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """One kind of cache file: what is in it, and what its reader makes of it."""

    content: dict[str, Any]
    read: Callable[[Path], Any]
    name: Callable[[Path], Path]


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from numbers(each)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


def ceilings_kind() -> Kind:
    def path(folder: Path) -> Path:
        return ceilings.cache_path("cpu", ("float32",), quick=True)

    def read(folder: Path) -> Any:
        found = ceilings.kept_ceilings("cpu", ("float32",))
        if found is None:
            return None
        for size in (1, 1 << 21, 1 << 40):
            assert 0 < found.bytes_per_s(size) < math.inf
        assert isinstance(found.disturbed, bool)
        return found.to_dict()

    return Kind({"version": ceilings.VERSION} | limits().to_dict(), read, path)


def cost_kind() -> Kind:
    from minserve.trace import StepWork

    def read(folder: Path) -> Any:
        try:
            found = step_cost(folder, "shape")
        except DamagedRecordingError as error:
            assert str(folder) not in str(error)
            return None
        assert 0 < found.step_s(StepWork(), 3, 1) < math.inf
        return asdict(found)

    return Kind(json.loads(COST.to_json()), read, lambda folder: cost_path(folder, "shape"))


def tiles_kind() -> Kind:
    autotune = pytest.importorskip("minserve.kernels.triton.analysis.autotune")
    from minserve.kernels.triton.tuning import Heads

    heads = Heads(16, 4, 2)
    ragged = next(autotune.ragged_candidates(heads))
    split = next(autotune.split_candidates(heads, 90))
    content = {"version": autotune.VERSION, "ragged": asdict(ragged), "split": asdict(split)}

    def path(folder: Path) -> Path:
        return autotune.cache_path(heads, 1, torch.float32, CPU)

    def read(folder: Path) -> Any:
        found = autotune._read(path(folder), heads, 90)
        if found is not None:
            assert found[0] in autotune.ragged_candidates(heads)
        return found

    return Kind(content, read, path)


def record_kind() -> Kind:
    content = {
        "schema": SCHEMA, "version": RECORD_VERSION, "part": "ceilings", "status": "done",
        "device": {"name": "a"}, "versions": {"torch": "2"}, "settings": {}, "rows": [{"a": 1.5}],
        "notes": [], "not_run": [],
    }  # fmt: skip

    def read(folder: Path) -> Any:
        found = load(folder / "part.json")
        assert found is None or isinstance(found["rows"], list)
        return found

    return Kind(content, read, lambda folder: folder / "part.json")


KINDS = {
    "ceilings": ceilings_kind,
    "cost": cost_kind,
    "tiles": tiles_kind,
    "record": record_kind,
}

JUNK: list[Any] = [
    None, True, False, "", "x", "1.0", -1, 0, -1.5, 1e308, 10**30, [], {}, [[]], [1, "a"],
    {"version": 1}, {"a": {"b": []}},
]  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in nested JSON."""
    yield at
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*at, key))


def changed(content: Any, at: tuple[Any, ...], action: str, junk: Any) -> Any:
    """A copy with one value replaced, removed, or joined by another."""
    content = json.loads(json.dumps(content))
    if not at:
        return junk
    holder = content
    for key in at[:-1]:
        holder = holder[key]
    if action == "remove":
        del holder[at[-1]]
    elif action == "add" and isinstance(holder, dict):
        holder["surplus"] = junk
    else:
        holder[at[-1]] = junk
    return content


@st.composite
def mutations(draw: st.DrawFn, content: Any) -> bytes | None:
    """The bytes of a damaged file; None for a directory."""
    text = json.dumps(content)
    at = draw(st.sampled_from(sorted(places(content), key=str)))
    other = changed(
        content, at, draw(st.sampled_from(["put", "put", "remove", "add"])),
        draw(st.sampled_from(JUNK)),
    )  # fmt: skip
    return draw(
        st.one_of(
            st.just(json.dumps(other).encode()),
            st.integers(0, len(text)).map(lambda end: text[:end].encode()),
            st.sampled_from(["NaN", "-Infinity", "1e999", "9" * 5000, "[" * 3000]).map(
                lambda junk: json.dumps(changed(content, at, "put", "@@")).replace('"@@"', junk)
            ).map(str.encode),
            st.binary(max_size=30),
            st.just(None),
        )
    )  # fmt: skip


def check(kind: Kind, data: st.DataObject, folder: Path) -> None:
    path = kind.name(folder)
    damaged = data.draw(mutations(kind.content))
    if damaged is None:
        path.mkdir(parents=True)
    else:
        path.write_bytes(damaged)
        path.chmod(0o600)
    found = kind.read(folder)
    for number in numbers(found):
        assert math.isfinite(number)


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
@settings(max_examples=60, derandomize=True)
def test_no_damage_is_an_exception_or_a_nonsense_number(name, data, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINSERVE_CACHE_DIR", str(folder))
        check(KINDS[name](), data, folder)


@pytest.mark.full
@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
@settings(max_examples=2000, derandomize=True)
def test_no_damage_at_all(name, data, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINSERVE_CACHE_DIR", str(folder))
        check(KINDS[name](), data, folder)


@pytest.mark.parametrize("name", KINDS)
def test_an_undamaged_file_is_read(name, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MINSERVE_CACHE_DIR", str(tmp_path))
    kind = KINDS[name]()
    path = kind.name(tmp_path)
    path.write_text(json.dumps(kind.content))
    os.chmod(path, 0o600)
    assert kind.read(tmp_path) is not None


def test_a_measurement_that_is_damaged_is_measured_again_and_kept(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MINSERVE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(ceilings, "measure_ceilings", lambda *a, **k: limits())
    cache_dir.say_once.cache_clear()
    ceilings.machine_ceilings("cpu", dtypes=("float32",))
    (path,) = tmp_path.iterdir()
    whole = json.loads(path.read_text())
    for junk in (-1.0, 0, "fast", None):
        path.write_text(json.dumps(changed(whole, ("matmul", 0, "rate", "per_s"), "put", junk)))
        with pytest.warns(cache_dir.CacheWarning, match="made again"):
            assert ceilings.machine_ceilings("cpu", dtypes=("float32",)) == limits()
        assert json.loads(path.read_text()) == whole
