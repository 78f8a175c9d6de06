"""Where a figure's numbers come from, in words: machine, date, versions, configuration, workload.

Made from trace headers, which never name hosts or paths. Knows nothing about figures.
"""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import minserve
from minserve.trace import TraceHeader, TraceSnapshot
from widgets.units import format_count

_KINDS = {
    "measured": "Measured on {device}",
    "modelled": "Modelled for {device}",
    "recorded": "Recorded on {device}",
}
# Only say what is remembered of a run: no difference between two sides.
_INCIDENTAL = ("trace.",)


@functools.cache
def checkout_commit() -> str:
    """Short commit of the checkout this code runs from ("+" where files differ), or ""."""
    root = Path(minserve.__file__).parent.parent
    if not (root / ".git").exists():
        return ""
    command = ["git", "describe", "--always", "--abbrev=8", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


@dataclass(frozen=True)
class Provenance:
    """What stands under a figure. `caption` puts it in a sentence or two."""

    kinds: Mapping[str, str]
    """Side -> measured, modelled or recorded."""
    devices: Mapping[str, str]
    dates: Mapping[str, str]
    versions: Mapping[str, str]
    model: str
    dtype: str
    seed: str
    differences: Mapping[str, Mapping[str, object]]
    """Side -> the configuration fields in which the sides were asked to differ. What only follows
    from one of them is left out."""
    workload: str
    commit: str

    @classmethod
    def of(
        cls, sides: Mapping[str, TraceHeader], workload: str = "", *, seed: int | str | None = None
    ) -> Provenance:
        """Provenance of one or more runs that a figure shows together."""
        if not sides:
            raise ValueError("a figure needs at least one run to say where it comes from")
        first = next(iter(sides.values()))
        config = dict(first.config)
        if seed is None:
            seed = config.get("seed", "")
        recorded = all(header.provenance == "recorded" for header in sides.values())
        commit = first.versions.get("commit", "") or ("" if recorded else checkout_commit())
        return cls(
            kinds={name: header.provenance for name, header in sides.items()},
            devices={name: header.device or "a device not named" for name, header in sides.items()},
            dates={name: header.date for name, header in sides.items()},
            versions={name: v for name, v in first.versions.items() if name != "commit"},
            model=_models(sides),
            dtype=str(config.get("dtype", "")),
            seed="" if seed is None else str(seed),
            differences=_differences(sides),
            workload=workload,
            commit=commit,
        )

    @property
    def caption(self) -> str:
        """Sentences for under the figure."""
        parts = [self._where()]
        what = ", ".join(part for part in (self.model, self.dtype, self.workload) if part)
        if self.seed:
            what += f", seed {self.seed}" if what else f"seed {self.seed}"
        if what:
            parts.append(what)
        for name, fields in self.differences.items():
            shown = [f"{path}={value}" for path, value in list(fields.items())[:3]]
            rest = len(fields) - len(shown)
            if rest:
                shown.append(f"{rest} more")
            parts.append(f"{name}: {', '.join(shown)}")
        versions = [f"{name} {version}" for name, version in self.versions.items()]
        if self.commit:
            versions.append(f"commit {self.commit}")
        if versions:
            parts.append(", ".join(versions))
        return ". ".join(parts) + "."

    def _where(self) -> str:
        origins = {
            name: _KINDS.get(kind, kind).format(device=self.devices[name])
            + (f", {self.dates[name]}" if self.dates[name] else "")
            for name, kind in self.kinds.items()
        }
        if len(set(origins.values())) == 1:
            return next(iter(origins.values()))
        return "; ".join(f"{name}: {text[0].lower()}{text[1:]}" for name, text in origins.items())


def _models(sides: Mapping[str, TraceHeader]) -> str:
    """The model's name, or each side's where they are not the same."""
    names = {side: header.model for side, header in sides.items()}
    if len(set(names.values())) == 1:
        return next(iter(names.values()))
    return ", ".join(f"{side}: {name or 'a model not named'}" for side, name in names.items())


def _asked(header: TraceHeader, path: str) -> object:
    return header.asked[path] if path in header.asked else header.config.get(path)


def _differences(sides: Mapping[str, TraceHeader]) -> dict[str, dict[str, object]]:
    if len(sides) < 2:
        return {}
    paths = list(dict.fromkeys(path for header in sides.values() for path in header.config))

    def differs(values: Iterable[object]) -> bool:
        return len(set(map(repr, values))) > 1

    differing = [
        path
        for path in paths
        if not path.startswith(_INCIDENTAL)
        and differs(header.config.get(path) for header in sides.values())
        and differs(_asked(header, path) for header in sides.values())
    ]
    return {
        name: {path: header.config.get(path) for path in differing}
        for name, header in sides.items()
        if differing
    }


def workload_of(snapshots: Mapping[str, TraceSnapshot]) -> str:
    """The workload in words, where all sides served the same one; otherwise side by side."""
    words = {}
    for name, snapshot in snapshots.items():
        totals = snapshot.totals
        words[name] = (
            f"{format_count(totals.finished_requests, 'request')}, "
            f"{format_count(totals.finished_prompt_tokens, 'token')} in, "
            f"{format_count(totals.finished_output_tokens)} out"
        )
    if len(set(words.values())) <= 1:
        return next(iter(words.values()), "")
    return "; ".join(f"{name} {text}" for name, text in words.items())
