"""The few parts of hypothesis that tests for a GPU use, for machines that have pytest alone.

Draws at random from a fixed seed: the same cases every time, nothing shrunk, no edge preferred. A
file that asks for more is skipped, and says what it missed.
"""

from __future__ import annotations

import functools
import inspect
import random
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TESTS = Path(__file__).parent


class Strategy:
    """Something that can be drawn."""

    def __init__(self, draw: Callable[[random.Random], Any]) -> None:
        self.draw = draw

    def map(self, change: Callable[[Any], Any]) -> Strategy:
        return Strategy(lambda source: change(self.draw(source)))

    def flatmap(self, then: Callable[[Any], Strategy]) -> Strategy:
        return Strategy(lambda source: then(self.draw(source)).draw(source))

    def filter(self, keep: Callable[[Any], bool]) -> Strategy:
        def draw(source: random.Random) -> Any:
            while not keep(value := self.draw(source)):
                pass
            return value

        return Strategy(draw)


def integers(min_value: int = 0, max_value: int = 2**31) -> Strategy:
    return Strategy(lambda source: source.randint(min_value, max_value))


def floats(min_value: float = 0.0, max_value: float = 1.0, **_: Any) -> Strategy:
    return Strategy(lambda source: source.uniform(min_value, max_value))


def booleans() -> Strategy:
    return sampled_from([False, True])


def just(value: Any) -> Strategy:
    return Strategy(lambda source: value)


def sampled_from(values: Any) -> Strategy:
    return Strategy(lambda source: source.choice(list(values)))


def one_of(*choices: Strategy) -> Strategy:
    return Strategy(lambda source: source.choice(choices).draw(source))


def tuples(*parts: Strategy) -> Strategy:
    return Strategy(lambda source: tuple(part.draw(source) for part in parts))


def lists(part: Strategy, *, min_size: int = 0, max_size: int = 10, **_: Any) -> Strategy:
    return Strategy(
        lambda source: [part.draw(source) for _ in range(source.randint(min_size, max_size))]
    )


def composite(function: Callable[..., Any]) -> Callable[..., Strategy]:
    def make(*args: Any, **named: Any) -> Strategy:
        return Strategy(
            lambda source: function(lambda strategy: strategy.draw(source), *args, **named)
        )

    return make


class settings:
    """How many examples; everything else is for shrinking and databases, which are not here."""

    def __init__(self, max_examples: int = 100, **_: Any) -> None:
        self.max_examples = max_examples

    def __call__(self, test: Any) -> Any:
        test.max_examples = self.max_examples
        return test

    @staticmethod
    def register_profile(name: str, **_: Any) -> None:
        pass

    @staticmethod
    def load_profile(name: str) -> None:
        pass


def given(*positional: Strategy, **named: Strategy) -> Callable[[Any], Any]:
    """Runs a test for each example; what is not drawn stays an argument for pytest."""

    def decorate(test: Any) -> Any:
        parameters = list(inspect.signature(test).parameters.values())
        names = [each.name for each in parameters]
        drawn = dict(zip(names[len(names) - len(positional) :], positional, strict=True)) | named

        @functools.wraps(test)
        def run(*args: Any, **others: Any) -> None:
            for number in range(getattr(run, "max_examples", 100)):
                source = random.Random(number)
                values = {name: strategy.draw(source) for name, strategy in drawn.items()}
                try:
                    test(*args, **others, **values)
                except BaseException as error:
                    error.add_note(f"drawn, example {number}: {values}")
                    raise

        run.max_examples = getattr(test, "max_examples", 100)
        kept = [each for each in parameters if each.name not in drawn]
        run.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined]
        return run

    return decorate


def _module(name: str, **parts: Any) -> ModuleType:
    """A module of these parts; a test file that asks it for another one is skipped."""

    def lacks(wanted: str) -> Any:
        # Libraries look through all modules for names of theirs: they get the ordinary answer.
        asking = Path(sys._getframe(1).f_code.co_filename)
        if wanted.startswith("__") or not asking.is_relative_to(TESTS):
            raise AttributeError(wanted)
        pytest.skip(f"needs hypothesis, for {name}.{wanted}", allow_module_level=True)

    module = ModuleType(name)
    # Torch's compiler, which transformers imports, looks for this module by its spec.
    vars(module).update(parts, __getattr__=lacks, __spec__=ModuleSpec(name, None))
    return module


def install() -> None:
    """Let `import hypothesis` find this."""
    known = (integers, floats, booleans, just, sampled_from, one_of, tuples, lists, composite)
    named = {each.__name__: each for each in known}
    strategies = _module("hypothesis.strategies", DrawFn=Any, SearchStrategy=Any, **named)
    sys.modules["hypothesis"] = _module(
        "hypothesis", given=given, settings=settings, strategies=strategies
    )
    sys.modules["hypothesis.strategies"] = strategies
    sys.modules["hypothesis.stateful"] = _module("hypothesis.stateful")
