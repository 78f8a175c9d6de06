"""Configurations are refused in one place: no other room words a ConfigError of its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from config.asked import MODEL, config_of

import minserve
import widgets
from minserve.config import resolve
from minserve.config.rules.memory import disk_refused, pin_refused, pool_refused

ALLOWED = {
    "minserve/build.py: check_": "arguments that are no EngineConfig, Clock, parts or predictor",
    "minserve/engine/parts.py: __post_init__": "objects that are no policy, order or predictor",
    "minserve/bench/": "the command line of a benchmark, which is no configuration",
}
"""Where a ConfigError may be worded besides (file and function, or a folder), and of what."""


def worded(package: Path) -> Iterator[str]:
    """File and function of every `ConfigError(...)` outside minserve/config."""
    for path in sorted(package.rglob("*.py")):
        file = path.relative_to(package.parent).as_posix()
        if file.startswith("minserve/config/"):
            continue
        yield from (f"{file}: {name}" for name in _calls(ast.parse(path.read_text("utf-8")), ""))


def _calls(node: ast.AST, function: str) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        function = node.name
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "ConfigError":
        yield function
    for child in ast.iter_child_nodes(node):
        yield from _calls(child, function)


def test_only_the_rules_refuse_a_configuration():
    places = [
        place for package in (minserve, widgets) for place in worded(Path(package.__file__).parent)
    ]
    strangers = [place for place in places if not place.startswith(tuple(ALLOWED))]
    assert not strangers, "word it in minserve/config/rules, and let resolve() raise it"
    for allowed in ALLOWED:
        assert any(place.startswith(allowed) for place in places), f"take out {allowed}"


def test_what_only_a_measurement_finds_is_refused_with_its_numbers_and_a_way_out():
    said = str(pool_refused(resolve(config_of({}), MODEL), 1000, 600, 500))
    assert said.startswith("memory.gpu_memory_utilization=0.9 allows 1000 bytes; 600 are in use")
    assert "needs 500 more" in said
    assert said.endswith("raise it, or lower scheduling.max_num_batched_tokens")


def test_what_only_a_call_or_the_disk_finds_is_refused_with_a_way_out():
    assert "memory.prefix_cache='off' has none: use memory.prefix_cache=" in str(pin_refused())
    said = str(disk_refused("/there", "No space left on device"))
    assert said.startswith("memory.disk_path='/there' cannot be written (No space left on device)")
    assert said.endswith("name another directory, or set memory.disk_bytes=0")
