"""`minserve completion bash|zsh|fish`: a completion script, made from the commands' own parsers.

Walks argparse's parsers into a tree of words; what each shell makes of it is in `shells`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from minserve.cli.completion.shells import SHELLS, Command, Option
from minserve.cli.parser import COMMANDS, command_parser

_FILES = ("FILE", "PATH", "DIRECTORY")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.description = (
        "Print a script that completes minserve's commands, options and values when TAB is "
        "pressed. It is read when the shell starts, so keep it in a file: "
        "minserve completion bash > ~/.local/share/bash-completion/completions/minserve; "
        "minserve completion zsh > a file _minserve in a directory of fpath; "
        "minserve completion fish > ~/.config/fish/completions/minserve.fish"
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell that reads the script")


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    print(SHELLS[args.shell](tree()), end="")
    return 0


def tree() -> Command:
    """All of minserve's commands and options."""
    commands = [
        describe(command_parser(name)[0], name, text) for name, (_, text) in COMMANDS.items()
    ]
    options = (
        Option(("-h", "--help"), "show the commands", False),
        Option(("--version",), "show the version", False),
    )
    return Command("minserve", "", options, commands=tuple(commands))


def describe(parser: argparse.ArgumentParser, name: str, text: str) -> Command:
    """A parser as a tree. What argparse's help hides is left out."""
    options: list[Option] = []
    commands: list[Command] = []
    words: list[str] = []
    files = False
    for action in parser._actions:  # argparse has no public way to ask
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            commands = [
                describe(each, word, helps.get(word, "")) for word, each in action.choices.items()
            ]
        elif action.help == argparse.SUPPRESS:
            continue
        elif action.option_strings:
            options.append(_option(action))
        else:
            words += _values(action)
            files = files or _takes_files(action)
    return Command(name, text, tuple(options), tuple(words), files, tuple(commands))


def _option(action: argparse.Action) -> Option:
    text = (action.help or "").replace("%%", "%").replace("%(default)s", str(action.default))
    return Option(
        flags=tuple(action.option_strings),
        help=text,
        takes_value=action.nargs != 0,
        values=_values(action),
        files=_takes_files(action),
    )


def _values(action: argparse.Action) -> tuple[str, ...]:
    if _names_model(action):
        from minserve.loading import FETCHABLE, ZOO

        shipped = sorted(path.parent.name for path in ZOO.glob("*/config.json"))
        return tuple(f"zoo/{name}" for name in (*shipped, *FETCHABLE))
    return tuple(str(choice) for choice in action.choices or ())


def _takes_files(action: argparse.Action) -> bool:
    named = action.metavar in _FILES or action.dest.endswith("_path")
    return named or action.type is Path or _names_model(action)


def _names_model(action: argparse.Action) -> bool:
    return action.metavar == "MODEL" or action.dest == "model"
