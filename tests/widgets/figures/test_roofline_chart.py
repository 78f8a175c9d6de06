from __future__ import annotations

import pytest

from minserve.hardware import Ceilings, Rate, find_device
from minserve.hardware.ceilings import BandwidthPoint, ProductPoint
from minserve.trace import RunTrace
from widgets import theme
from widgets.figures import RooflinePoint, roofline_chart, roofline_points


def ceilings() -> Ceilings:
    rate = Rate(10e9, 9e9, 11e9, "read", 3)
    return Ceilings(
        processor="a processor", device="cpu", threads=2, torch_version="2", date="2026-11-21",
        quick=True, cpu_share=None, bandwidth=(BandwidthPoint(1 << 20, rate, rate),),
        matmul=(ProductPoint("float32", 1024, 1024, Rate(50e9, 50e9, 50e9, "mm", 3)),), matvec=(),
    )  # fmt: skip


def test_points_hold_the_counted_work(plain: RunTrace) -> None:
    points = roofline_points({"off": plain})
    assert [point.label for point in points] == ["off: prefill", "off: decode"]
    assert sum(point.flops for point in points) == plain.totals.flops
    assert sum(point.bytes for point in points) == plain.totals.bytes


def test_share_of_the_roof_is_the_bound_over_what_was_reached() -> None:
    slow = RooflinePoint("decode", flops=1e9, bytes=1e9, seconds=1.0)
    drawn = roofline_chart([slow], {"here": ceilings()})
    assert drawn.table[0]["share of here"] == pytest.approx(0.1)
    assert drawn.table[0]["binds on here"] == "memory"
    assert "10 % of the memory roof (here)" in drawn.takeaway
    dense = RooflinePoint("prefill", flops=1e11, bytes=1e9, seconds=4.0)
    row = roofline_chart([dense], {"here": ceilings()}).table[0]
    assert (row["share of here"], row["binds on here"]) == (0.5, "compute")


def test_measured_roofs_are_solid_and_data_sheets_dashed(plain: RunTrace) -> None:
    drawn = roofline_chart(plain, {"here": ceilings(), "H200": find_device("H200")})
    roofs = {t.name: t.line.dash for t in drawn.figure.data if t.mode == "lines"}
    assert roofs == {"here": theme.DASHES["measured"], "H200": theme.DASHES["modelled"]}
    assert "H200" in drawn.alt
    points = [t for t in drawn.figure.data if t.mode == "markers+text"]
    assert all(t.marker.symbol.endswith("-open") for t in points), "modelled points are hollow"


def test_nothing_counted_says_so() -> None:
    assert roofline_chart([], ceilings()).takeaway == "No work was counted."


def test_labels_of_neighbouring_points_stand_in_different_corners() -> None:
    points = [RooflinePoint(f"p{n}", 1e9 * (1 + n / 10), 1e8, 1e-3) for n in range(3)]
    drawn = roofline_chart(points, find_device("T4"), dtype="float16")
    corners = [t.textposition for t in drawn.figure.data if t.mode == "markers+text"]
    assert len(set(corners)) == 3
