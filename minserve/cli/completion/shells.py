"""Completion scripts for bash, zsh and fish, written from a tree of commands.

Each script follows the words before the cursor down the tree, and offers what may come next: the
values of the option before, else the options, the sub-commands and the known arguments. Knows
nothing about argparse.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """One option, and what may follow it."""

    flags: tuple[str, ...]
    """All its spellings, such as `-h` and `--help`."""
    help: str
    takes_value: bool
    values: tuple[str, ...] = ()
    """The values that are known beforehand."""
    files: bool = False
    """True if a file or a directory may follow."""


@dataclass(frozen=True)
class Command:
    """A command, and what may follow it."""

    name: str
    help: str
    options: tuple[Option, ...] = ()
    words: tuple[str, ...] = ()
    """Words that may be its arguments."""
    files: bool = False
    """True if its arguments may be files or directories."""
    commands: tuple[Command, ...] = ()


_BASH = r"""# bash completion for minserve; made by `minserve completion bash`
_minserve() {
    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} at=minserve
    local files= word quoted i
    local -a words=()
    # bash makes a word of the = in --dtype=float32
    if [[ $current == = ]]; then
        current=
    elif [[ $before == = ]]; then
        before=${COMP_WORDS[COMP_CWORD-2]}
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "$at ${COMP_WORDS[i]}" in
            @PATHS@) at="$at ${COMP_WORDS[i]}" ;;
        esac
    done
    case "$at $before" in
@VALUES@
        *)
            if [[ $current == -* ]]; then
                case "$at" in
@OPTIONS@
                esac
            else
                case "$at" in
@WORDS@
                esac
            fi ;;
    esac
    COMPREPLY=()
    for word in "${words[@]}"; do
        printf -v quoted %q "$word"
        [[ $quoted == "$current"* ]] && COMPREPLY+=("$quoted")
    done
    if [[ $files ]]; then
        compopt -o filenames 2>/dev/null  # bash 4 and newer
        while IFS= read -r word; do COMPREPLY+=("$word"); done < <(compgen -f -- "$current")
    fi
}
complete -F _minserve minserve
"""

_ZSH = r"""#compdef minserve
# zsh completion for minserve; made by `minserve completion zsh`
_minserve() {
    local before=${words[CURRENT-1]} at=minserve files= i
    local -a offered=()
    if [[ $PREFIX == --*=* ]]; then
        before=${PREFIX%%=*}
        compset -P '*='
    fi
    for ((i = 2; i < CURRENT; i++)); do
        case "$at ${words[i]}" in
            (@PATHS@) at="$at ${words[i]}" ;;
        esac
    done
    case "$at $before" in
@VALUES@
        (*)
            if [[ $PREFIX == -* ]]; then
                case "$at" in
@OPTIONS@
                esac
            else
                case "$at" in
@WORDS@
                esac
            fi ;;
    esac
    (( $#offered )) && compadd -a offered
    [[ -n $files ]] && _files
}
if [[ $funcstack[1] == _minserve ]]; then
    _minserve "$@"
else
    compdef _minserve minserve
fi
"""

_FISH = r"""# fish completion for minserve; made by `minserve completion fish`
function __minserve_at
    set -l at minserve
    for word in (commandline -opc)[2..-1]
        switch "$at $word"
            case @PATHS@
                set at "$at $word"
        end
    end
    test "$at" = "$argv[1]"
end
complete -c minserve -f
"""


def bash(root: Command) -> str:
    """The script for bash 3.2 and newer."""
    return _filled(_BASH, root, "words", lambda pattern: pattern)


def zsh(root: Command) -> str:
    """The script for zsh."""
    return _filled(_ZSH, root, "offered", lambda pattern: f"({pattern}")


def fish(root: Command) -> str:
    """The script for fish."""
    paths = [path for path, _ in _walk(root)][1:]
    lines = [_FISH.replace("@PATHS@", " ".join(map(_quoted, paths)))]
    for path, command in _walk(root):
        start = f"complete -c minserve -n {_quoted('__minserve_at ' + _quoted(path))}"
        for each in command.commands:
            lines.append(f"{start} -a {each.name} -d {_quoted(_short(each.help))}\n")
        if command.words:
            lines.append(f"{start} -a {_quoted(' '.join(map(_escaped, command.words)))}\n")
        if command.files:
            lines.append(f"{start} -F\n")
        lines += [f"{start} {_fish_option(option)}\n" for option in command.options]
    return "".join(lines)


SHELLS: dict[str, Callable[[Command], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
"""Shell -> its script of a tree."""


def _filled(script: str, root: Command, array: str, head: Callable[[str], str]) -> str:
    """A script of bash or zsh, whose `case` statements differ in the head of a pattern alone."""
    values, options, words = [], [], []

    def offer(pattern: str, offered: Iterator[str] | tuple[str, ...], files: bool) -> str:
        listed = " ".join(map(_escaped, offered))
        return f"{head(pattern)}) {array}=({listed}){' files=1' if files else ''} ;;"

    for path, command in _walk(root):
        for option in command.options:
            if option.takes_value:
                names = "|".join(_quoted(f"{path} {flag}") for flag in option.flags)
                values.append(" " * 8 + offer(names, option.values, option.files))
        flags = (flag for option in command.options for flag in option.flags)
        options.append(" " * 20 + offer(_quoted(path), flags, False))
        known = (*(each.name for each in command.commands), *command.words)
        words.append(" " * 20 + offer(_quoted(path), known, command.files))
    paths = "|".join(_quoted(path) for path, _ in list(_walk(root))[1:])
    for name, lines in (("VALUES", values), ("OPTIONS", options), ("WORDS", words)):
        script = script.replace(f"@{name}@", "\n".join(lines))
    return script.replace("@PATHS@", paths)


def _walk(command: Command, above: str = "") -> Iterator[tuple[str, Command]]:
    """Every command with its path, such as "minserve bench serve"."""
    path = f"{above} {command.name}".strip()
    yield path, command
    for each in command.commands:
        yield from _walk(each, path)


def _fish_option(option: Option) -> str:
    parts = [
        f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags
    ]
    if option.takes_value:
        parts.append("-r" if option.files else "-x")
    if option.files:
        parts.append("-F")
    if option.values:
        parts.append(f"-a {_quoted(' '.join(map(_escaped, option.values)))}")
    return f"{' '.join(parts)} -d {_quoted(_short(option.help))}"


def _short(text: str) -> str:
    """The help's first clause, to stand beside the word."""
    return re.split(r"[;(]|\. ", text)[0].strip()


def _quoted(text: str) -> str:
    """In single quotes. All three shells take a quote in this form."""
    return "'" + text.replace("'", "'\"'\"'") + "'"


def _escaped(word: str) -> str:
    """With a backslash before whatever a shell would read as more than a letter."""
    return re.sub(r"([^\w./:@%+=,-])", r"\\\1", word)
