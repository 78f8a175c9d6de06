"""Runs in a peer's own environment: a process that serves on command, and sleeps otherwise.

    python child_peer.py openvino|llama ARGUMENTS

Commands are JSON lines on stdin, answers JSON lines on stdout; the first line says it is ready.
Between commands it blocks in a read. Imports nothing of minserve, which that environment lacks; the
peer is the module beside this one.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any


def main(name: str, arguments: list[str]) -> int:
    """Serve commands until stdin ends or a command says quit."""
    # Libraries may print to file descriptor 1: keep it for answers only.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    module = importlib.import_module(f"{name}_peer")
    peer = module.Peer(module.parse(arguments))

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    answer({"ready": True, "settings": peer.settings()})
    for line in sys.stdin:
        command = json.loads(line)
        kind = command.pop("do")
        if kind == "quit":
            break
        try:
            answer(getattr(peer, kind)(**command))
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
