"""Numbers in words: three significant digits, with their unit, the same everywhere."""

from __future__ import annotations

from collections.abc import Iterable


def _digits(value: float) -> str:
    """Three significant digits, thousands separated, no exponent."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 999.5:
        return f"{value:,.0f}"
    places = 2 if size < 9.995 else 1 if size < 99.95 else 0
    if size < 0.9995:
        return f"{value:.3g}"
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _scaled(value: float, units: Iterable[tuple[float, str]]) -> str:
    for factor, unit in units:
        # The last unit serves whatever is smaller; rounding must not show 1000 of a unit.
        if abs(value) >= 0.9995 * factor:
            return f"{_digits(value / factor)} {unit}"
    return f"{_digits(value / factor)} {unit}"


def format_seconds(value: float) -> str:
    """A duration: 1.23 s, 45.6 ms, 7.89 µs."""
    if value == 0:
        return "0 s"
    return _scaled(value, ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")))


def format_bytes(value: float) -> str:
    """A size in decimal units: 1.5 GB, 512 kB, 12 bytes."""
    if value == 1:
        return "1 byte"
    return _scaled(value, ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "bytes")))


def format_flops(value: float) -> str:
    """Counted arithmetic: 3.2 GFLOP."""
    return _scaled(
        value, ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1, "FLOP"))
    )


def format_rate(value: float, unit: str = "tokens/s") -> str:
    """A rate in its unit: 1,234 tokens/s."""
    return f"{_digits(value)} {unit}"


def format_count(value: int, noun: str = "", plural: str = "") -> str:
    """A whole number, with its noun in the right number: 1 step, 2,000 steps."""
    if not noun:
        return f"{value:,}"
    return f"{value:,} {noun if value == 1 else plural or noun + 's'}"


def format_ratio(value: float) -> str:
    """A factor: 3.4x."""
    return f"{_digits(value)}x"


def format_percent(share: float) -> str:
    """A share between 0 and 1 as a percentage: whole, or one digit below 10 %."""
    percent = 100 * share
    return f"{percent:.0f} %" if percent >= 9.95 or percent == 0 else f"{percent:.1f} %"


def time_unit(largest_s: float) -> tuple[float, str]:
    """Factor from seconds and unit for an axis that ends at `largest_s`."""
    if largest_s >= 2.0:
        return 1.0, "s"
    return (1e3, "ms") if largest_s >= 2e-3 else (1e6, "µs")


def byte_unit(largest: float) -> tuple[float, str]:
    """Divisor from bytes and unit for an axis that ends at `largest`."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if largest >= factor:
            return factor, unit
    return 1.0, "bytes"
