"""Make the programs of a virtual environment that was moved name its Python where it is now.

`moved.py /new/place/.venv`: rewrites the first lines of the scripts in `bin/`, as pip wrote them.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from pathlib import Path

# Either a plain line, or pip's way round a path that is too long or has a space.
HEAD = re.compile(
    rb"""#!(?:/bin/sh\n'''exec' "?)?(/[^\n"]*?)/bin/(python[0-9.]*)(?:"? "\$0" "\$@"\n' ''')?\n"""
)
MOST_BYTES = 127
"""What every system reads of such a line; pip's limit too."""


def head(python: bytes) -> bytes:
    """The first lines of a script for this Python."""
    if b" " in python or len(python) + 3 > MOST_BYTES:
        return b"#!/bin/sh\n'''exec' \"" + python + b'" "$0" "$@"\n\' \'\'\'\n'
    return b"#!" + python + b"\n"


def adapt(environment: Path) -> list[str]:
    """Rewrite the scripts of `environment` that name another place; their names."""
    new = os.fsencode(environment)
    pip = HEAD.match((environment / "bin" / "pip").read_bytes())
    if pip is None:
        raise ValueError(f"{environment / 'bin' / 'pip'} is not a script of pip's")
    changed = []
    for path in sorted((environment / "bin").iterdir()):
        if path.is_symlink() or not path.is_file():
            continue
        text = path.read_bytes()
        found = HEAD.match(text)
        if found is None or found[1] != pip[1] or found[1] == new:
            continue
        # Renamed into place: no program is ever half written.
        fresh = path.with_name(f".{path.name}.new")
        fresh.write_bytes(head(new + b"/bin/" + found[2]) + text[found.end() :])
        fresh.chmod(stat.S_IMODE(path.stat().st_mode))
        fresh.replace(path)
        changed.append(path.name)
    return changed


if __name__ == "__main__":
    adapt(Path(sys.argv[1]))
