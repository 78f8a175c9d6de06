"""The command line: generate, chat, info, bench, zoo, lab.

Finds the command, and turns errors meant for people into one line and an exit code: 0 done, 1 the
run failed, 2 wrong usage, 130 interrupted. Each command has its own module, which is imported only
when it is called, so that `--help` does not wait for torch.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from minserve import __version__
from minserve.cli import streams

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
    if sys.stderr is None:  # print() would write figures and errors to stdout instead
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        code = int(module.run(options))
        if sys.stdout is not None:
            sys.stdout.flush()  # a full disk is detected here, not when the interpreter ends
        return code
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone; keep the interpreter from complaining at exit.
        streams.silence_stdout()
        return 141
    except (ValueError, OSError, RuntimeError) as error:
        return _explain(error)


def _explain(error: Exception) -> int:
    """One line on stderr for an error meant for people, and its exit code; a bug is raised."""
    if _meant_for_people(error):
        print(f"minserve: {error}", file=sys.stderr)
        return 1 if isinstance(error, streams.OutputError) else 2
    sentence = streams.stdout_failure(error)
    if sentence is not None:
        streams.silence_stdout()
        print(f"minserve: {sentence}", file=sys.stderr)
        return 1
    if isinstance(error, OSError):  # a disk, a permission: not a bug of the program
        print(f"minserve: {error}", file=sys.stderr)
        return 1
    raise error


def _meant_for_people(error: Exception) -> bool:
    """True for our own errors, which are sentences. Any other error is a bug and
    keeps its traceback."""
    return isinstance(error, FileNotFoundError) or type(error).__module__.startswith("minserve.")


if __name__ == "__main__":
    sys.exit(main())
