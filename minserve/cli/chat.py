"""`minserve chat`: a conversation, answers on stdout, prompts and figures on stderr.

Ctrl-C during an answer stops that answer. What was said so far stays in the conversation, so that
the model knows what its reader has read; a question without any answer is removed.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from minserve.cli.generate import print_chunks
from minserve.cli.options import (
    add_model_arguments,
    add_sampling_arguments,
    engine_config,
    sampling_params,
)
from minserve.cli.report import figures
from minserve.cli.streams import check_stdout, read_line
from minserve.inputs.conversations import Message
from minserve.llm import LLM
from minserve.request import InvalidRequestError, SamplingParams


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.description = (
        "Talk to a model that has a chat template. Ctrl-C stops an answer and keeps what was said "
        "so far; Ctrl-C again, or at the prompt, ends, as Ctrl-D and /exit do; /reset starts over."
    )
    parser.add_argument("--system", help="a system message to begin with")
    parser.add_argument("--quiet", action="store_true", help="no figures on stderr")
    add_sampling_arguments(parser)
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Talk until the end of the input (Ctrl-D) or /exit; /reset starts over."""
    check_stdout()
    with LLM(args.model, engine_config(args)) as llm:
        opening: list[Message] = [{"role": "system", "content": args.system}] if args.system else []
        messages = list(opening)
        # Fails now, before anything is typed, if the model cannot chat.
        llm.chat_prompt([*opening, {"role": "user", "content": "hello"}])
        params = sampling_params(args, llm.default_sampling_params)
        print(
            "Ctrl-C stops an answer, Ctrl-D or /exit ends, /reset starts over",
            file=sys.stderr,
        )
        while True:
            print("> ", end="", file=sys.stderr, flush=True)
            line = read_line()
            if not line or line.strip() == "/exit":
                return 0
            if line.strip() == "/reset":
                messages = list(opening)
            elif line.strip():
                messages += _turn(llm, messages, line.strip(), params)
                if not args.quiet:
                    print(figures(llm), file=sys.stderr)


def _turn(llm: LLM, messages: list[Message], line: str, params: SamplingParams) -> list[Message]:
    """Answer a line, and return what it adds to the conversation."""
    question: Message = {"role": "user", "content": line}
    try:
        answer = _answer(llm, llm.chat_prompt([*messages, question]), params)
    except InvalidRequestError as error:
        # Usually the conversation is too long: leave out this turn and keep the others.
        print(f"minserve: {error}; /reset starts over", file=sys.stderr)
        return []
    return [] if answer is None else [question, {"role": "assistant", "content": answer}]


def _answer(llm: LLM, prompt: list[int], params: SamplingParams) -> str | None:
    """The answer, printed as it is generated; None if it was stopped before it began."""
    parts: list[str] = []
    stream = llm.stream(prompt, params)
    with first_interrupt(stream.close) as interrupted:
        error = print_chunks(stream, parts)
    if interrupted():
        kept = "what was said so far is kept" if parts else "the question is removed"
        print(f"minserve: stopped; {kept}", file=sys.stderr)
        return "".join(parts) or None
    if error is not None:
        print(f"minserve: {error}", file=sys.stderr)
    return "".join(parts)


@contextmanager
def first_interrupt(stop: Callable[[], object]) -> Iterator[Callable[[], bool]]:
    """While it is entered, the first Ctrl-C calls `stop` and nothing else; the next one is a
    KeyboardInterrupt again. Yields a function that says whether there was one.

    Changes nothing outside the main thread, and where Ctrl-C is ignored (a background job).
    """
    before = signal.getsignal(signal.SIGINT)
    came: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.signal(signal.SIGINT, before)
        stop()

    mine = threading.current_thread() is threading.main_thread() and callable(before)
    if mine:
        signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: bool(came)
    finally:
        if mine:
            signal.signal(signal.SIGINT, before)
