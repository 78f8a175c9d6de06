"""A reader's solution as the cases call it: every call is noted, every answer is read.

What goes wrong in the solution itself is told apart here from what a case says about its answers.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minserve.inputs.wording import with_article
from widgets.panels.exercises.returns import ANYTHING, Returns, WrongTypeError, shortened, text_of
from widgets.panels.exercises.time_limit import Cut


@dataclass(frozen=True)
class Call:
    """One call that came back."""

    arguments: tuple[Any, ...]
    answer: Any


class RaisedError(Exception):
    """The solution raised `error`, when called as `words` says."""

    def __init__(self, error: BaseException, words: str) -> None:
        super().__init__(f"{words} raised {type(error).__name__}: {text_of(error)}")
        self.error, self.words = error, words


class Asked:
    """Call it like the solution. Lists given to it are copies: changing them spoils nothing.

    Raises RaisedError for whatever the solution raises, WrongTypeError for an answer of a kind that
    cannot be used, and NotImplementedError as it is.
    """

    def __init__(
        self,
        solution: Any,
        function: str,
        parameters: Sequence[str] = (),
        returns: Returns = ANYTHING,
    ) -> None:
        self.solution, self.function = solution, function
        self.parameters, self.returns = tuple(parameters), returns
        self.calls: list[Call] = []
        self.pending = ""
        """The call that has not come back, in words."""
        self.error: Exception | None = None
        """What it raised first; an engine in between may have caught it."""

    def __call__(self, *arguments: Any) -> Any:
        """Call the solution; see the class for what this raises."""
        if self.error is not None:
            raise self.error
        # In words before the call: it may change what it was given.
        self.pending = words = self.words(arguments)
        given = [copy.copy(a) if isinstance(a, (list, dict, set)) else a for a in arguments]
        try:
            answer = self.solution(*given)
        except (Cut, NotImplementedError) as error:
            self.error = error if isinstance(error, Exception) else None
            raise
        except BaseException as error:  # Also exit() and KeyboardInterrupt: they end the case only.
            self.error = RaisedError(error, words)
            raise self.error from error
        try:
            answer = self.returns.read(answer)
        except WrongTypeError as error:
            self.error = WrongTypeError(f"`{words}` {error}")
            raise self.error from None
        except Cut:
            raise
        except BaseException as error:  # A generator of the solution runs only while it is read.
            self.error = RaisedError(error, words)
            raise self.error from error
        self.pending = ""
        self.calls.append(Call(arguments, answer))
        return answer

    @property
    def answers(self) -> tuple[Any, ...]:
        """The answers of all calls, in order."""
        return tuple(call.answer for call in self.calls)

    def words(self, arguments: Sequence[Any]) -> str:
        """The call as one would write it: `place(free=[2, 3], need=2)`."""
        return call_words(self.function, self.parameters, arguments)


def call_words(function: str, parameters: Sequence[str], arguments: Sequence[Any]) -> str:
    """`function(name=value, ...)`."""
    shown = [shortened(value) for value in arguments]
    if len(parameters) == len(shown):
        shown = [f"{name}={value}" for name, value in zip(parameters, shown, strict=True)]
    return f"{function}({', '.join(shown)})"


def said(solution: Any, arguments: Sequence[Any]) -> str:
    """A call of any solution, noted or plain, in words."""
    if isinstance(solution, Asked):
        return solution.words(arguments)
    name = getattr(solution, "__name__", "solution")
    try:
        parameters = list(inspect.signature(solution).parameters)
    except (TypeError, ValueError):
        parameters = []
    return call_words(name, parameters, arguments)


def misfit(solution: Any, function: str, parameters: Sequence[str]) -> str:
    """Why the solution cannot be called with these parameters, in a sentence; "" where it can."""
    if not callable(solution):
        kind = with_article(type(solution).__name__)
        return f"`{function}` is not a function here, it is {shortened(solution)} ({kind})."
    if inspect.iscoroutinefunction(solution):
        return f"`{function}` is an `async def`: write a plain `def`."
    if inspect.isgeneratorfunction(solution):
        return f"`{function}` has a `yield`: use `return`, a caller waits for one answer."
    try:
        signature = inspect.signature(solution)
    except (TypeError, ValueError):
        return ""
    try:
        signature.bind(*parameters)
    except TypeError:
        wanted = f"{function}({', '.join(parameters)})"
        return f"`{function}` is called as `{wanted}`, but yours is `{function}{signature}`."
    return ""
