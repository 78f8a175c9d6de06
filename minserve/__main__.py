"""The command line: generate, chat, info, bench, zoo, lab.

Finds the command and turns errors meant for people into one line and an exit code: 0 done, 1 the
run failed, 2 it was asked for wrongly, 130 interrupted. What a command does is in its own module,
imported only when it is called, so that `--help` does not wait for torch.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from minserve import __version__

COMMANDS = {
    "generate": ("minserve.cli.generate", "continue a prompt"),
    "chat": ("minserve.cli.chat", "talk to a model that has a chat template"),
    "info": ("minserve.cli.info", "the machine, its ceilings, the model, the configuration"),
    "bench": ("minserve.bench.cli", "measure throughput or latency, against transformers too"),
    "zoo": ("minserve.cli.zoo", "the models that ship, and how they score"),
    "lab": ("minserve.cli.lab", "doctor: can the chapters run here?"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="minserve",
        description="A compact but complete LLM serving engine, made to be looked into.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n"
        + "\n".join(f"  {name:10} {text}" for name, (_, text) in COMMANDS.items())
        + "\n\n`minserve COMMAND --help` has a command's options.",
    )
    parser.add_argument("--version", action="version", version=f"minserve {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="see below")
    args = parser.parse_args(words[:1] or ["--help"])
    module = importlib.import_module(COMMANDS[args.command][0])
    command = argparse.ArgumentParser(
        prog=f"minserve {args.command}", description=COMMANDS[args.command][1].capitalize() + "."
    )
    module.add_arguments(command)
    options = command.parse_args(words[1:])
    try:
        return int(module.run(options))
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone; keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, RuntimeError) as error:
        if not _meant_for_people(error):
            raise
        print(f"minserve: {error}", file=sys.stderr)
        return 2


def _meant_for_people(error: Exception) -> bool:
    """Errors of our own are sentences; anything else is a bug and keeps its traceback."""
    return isinstance(error, FileNotFoundError) or type(error).__module__.startswith("minserve.")


if __name__ == "__main__":
    sys.exit(main())
