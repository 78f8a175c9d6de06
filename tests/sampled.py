"""What `make test` leaves out, and what it draws at random instead: a pytest plugin.

`@pytest.mark.full`: runs with `--full` only. `@pytest.mark.sampled(count)`: of the cases of a test
that carry it, `count` are drawn; with `--full` all of them run. `examples(full, quick)`: the length
of a property's run. The seed stands in pytest's header and beside its failures, and is the same in
all processes of xdist. What the command line names by its node id runs in any case.
"""

from __future__ import annotations

import os
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

FULL_VARIABLE = "MINSERVE_TEST_FULL"

full = False
"""Is everything to run? Known before any test module is imported."""
seed = 0


def examples(full_count: int, quick_count: int) -> int:
    """Drawn cases of a property: `full_count` with --full, otherwise `quick_count`."""
    return full_count if full else quick_count


def arguments() -> list[str]:
    """For a pytest that a test starts: the same choice again."""
    return [f"--sample-seed={seed}", *(["--full"] if full else [])]


def drawn(groups: Mapping[str, Iterable[str]], counts: Mapping[str, int], seed: int) -> set[str]:
    """`counts[name]` cases of every group, or all where there are no more. A group's draw depends
    on the seed, its name and its cases alone, not on which other tests were collected."""
    chosen: set[str] = set()
    for name, cases in groups.items():
        known = sorted(cases)
        chosen.update(random.Random(f"{seed} {name}").sample(known, min(counts[name], len(known))))
    return chosen


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("minserve")
    group.addoption(
        "--full",
        action="store_true",
        help=f"run what is marked full, and every case of what is sampled ({FULL_VARIABLE}=1)",
    )
    group.addoption(
        "--sample-seed",
        type=int,
        metavar="N",
        help="draw the sample of an earlier run again; its header shows the number",
    )


def pytest_configure(config: pytest.Config) -> None:
    global full, seed
    if os.environ.get(FULL_VARIABLE, "0") not in ("", "0"):
        config.option.full = True
    # A process of xdist is told what the first one has drawn.
    told = getattr(config, "workerinput", {}).get("sample_seed", config.option.sample_seed)
    config.option.sample_seed = time.time_ns() // 1_000_000 % 1_000_000 if told is None else told
    full, seed = config.option.full, config.option.sample_seed


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["sample_seed"] = node.config.option.sample_seed


def pytest_report_header(config: pytest.Config) -> str:
    return _sentence(config)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    # Once more where it is needed: quiet runs have no header.
    if terminalreporter.stats.get("failed") or terminalreporter.stats.get("error"):
        terminalreporter.write_line(_sentence(config))


def _sentence(config: pytest.Config) -> str:
    number = config.option.sample_seed
    if config.option.full:
        return "sampled tests: all of them (--full)"
    return f"sampled tests: seed {number}; repeat with --sample-seed {number}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked full, and the cases that were not drawn."""
    if config.option.full:
        return
    left_out = {item.nodeid for item in items if item.get_closest_marker("full")}
    groups: dict[str, list[str]] = defaultdict(list)
    counts: dict[str, int] = {}
    for item in items:
        mark = item.get_closest_marker("sampled")
        if mark is not None:
            name = _function(item.nodeid)
            groups[name].append(item.nodeid)
            (counts[name],) = mark.args
    left_out |= {case for cases in groups.values() for case in cases}
    left_out -= drawn(groups, counts, config.option.sample_seed)
    named = set(_named(config))
    unasked = {
        item
        for item in items
        if item.nodeid in left_out and named.isdisjoint(_names(item.path, item.nodeid))
    }
    if unasked:
        config.hook.pytest_deselected(items=list(unasked))
        items[:] = [item for item in items if item not in unasked]


def _function(nodeid: str) -> str:
    return nodeid.partition("[")[0]


def _names(path: Path, nodeid: str) -> set[tuple[Path, str]]:
    """What a command line may call a test: the case, or the function with all its cases."""
    case = nodeid.partition("::")[2]
    return {(path, case), (path, _function(case))}


def _named(config: pytest.Config) -> Iterator[tuple[Path, str]]:
    for arg in config.args:
        path, _, test = arg.partition("::")
        if test:
            yield (config.invocation_params.dir / path).resolve(), test
