"""The commands and their parsers, whose errors are one line and a hint.

A command's module is imported only when its parser is made, so that `--help` does not wait for
torch.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from types import ModuleType
from typing import Any, NoReturn

COMMANDS = {
    "generate": ("minserve.cli.generate", "continue a prompt"),
    "chat": ("minserve.cli.chat", "talk to a model that has a chat template"),
    "serve": ("minserve.cli.serve", "an OpenAI-compatible HTTP server"),
    "info": ("minserve.cli.info", "the machine, its ceilings, the model, the configuration"),
    "bench": ("minserve.bench.cli", "measure throughput or latency, against transformers too"),
    "zoo": ("minserve.cli.zoo", "the models that ship, a real one to fetch, how they score"),
    "lab": ("minserve.cli.lab", "doctor: can the chapters run here?"),
    "completion": ("minserve.cli.completion.command", "TAB completion for bash, zsh or fish"),
}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that answers a wrong usage with one line and a hint, and code 2.

    argparse would print the usage before it, dozens of lines where each field of the configuration
    has a flag. Parsers of sub-commands are of this class too.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register("type", int, _integer)
        self.register("type", float, _number)
        self.set_defaults(prog=self.prog)  # the innermost parser's: whose help to point to

    def error(self, message: str) -> NoReturn:
        """End with code 2."""
        self.exit(2, f"minserve: {message}\n{hint(self.prog)}\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse drops what it cannot write, and help on a full disk would look like success.
        (file or sys.stderr).write(message)


def hint(prog: str) -> str:
    """The line after a usage error."""
    return f"`{prog} --help` lists what it takes"


def command_parser(name: str) -> tuple[Parser, ModuleType]:
    """The parser of a command, and the module that runs it."""
    path, text = COMMANDS[name]
    module = importlib.import_module(path)
    parser = Parser(prog=f"minserve {name}", description=text.capitalize() + ".")
    module.add_arguments(parser)
    return parser, module


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected an integer") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number") from None
