"""`minserve chat`: a conversation, answers on stdout, prompts and figures on stderr."""

from __future__ import annotations

import argparse
import sys

from minserve.cli.generate import stream_to_stdout
from minserve.cli.options import (
    add_model_arguments,
    add_sampling_arguments,
    engine_config,
    sampling_params,
)
from minserve.cli.report import figures
from minserve.cli.streams import check_stdout, read_line
from minserve.llm import LLM
from minserve.request import InvalidRequestError, SamplingParams


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--system", help="a system message to begin with")
    parser.add_argument("--quiet", action="store_true", help="no figures on stderr")
    add_sampling_arguments(parser)
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Talk until the end of the input (Ctrl-D) or /exit; /reset starts over."""
    check_stdout()
    with LLM(args.model, engine_config(args)) as llm:
        opening = [{"role": "system", "content": args.system}] if args.system else []
        messages = list(opening)
        # Fails now, before anything is typed, if the model cannot chat.
        llm.chat_prompt([*opening, {"role": "user", "content": "hello"}])
        params = sampling_params(args, llm.default_sampling_params)
        print("Ctrl-D or /exit ends, /reset starts over", file=sys.stderr)
        while True:
            print("> ", end="", file=sys.stderr, flush=True)
            line = read_line()
            if not line or line.strip() == "/exit":
                return 0
            if line.strip() == "/reset":
                messages = list(opening)
                continue
            if not line.strip():
                continue
            messages.append({"role": "user", "content": line.strip()})
            try:
                answer = _answer(llm, llm.chat_prompt(messages), params)
            except InvalidRequestError as error:
                # Usually the conversation is too long: remove the last turn and keep the others.
                messages.pop()
                print(f"minserve: {error}; /reset starts over", file=sys.stderr)
                continue
            messages.append({"role": "assistant", "content": answer})
            if not args.quiet:
                print(figures(llm), file=sys.stderr)


def _answer(llm: LLM, prompt: list[int], params: SamplingParams) -> str:
    parts: list[str] = []
    error = stream_to_stdout(llm, prompt, params, parts)
    if error is not None:
        print(f"minserve: {error}", file=sys.stderr)
    return "".join(parts)
