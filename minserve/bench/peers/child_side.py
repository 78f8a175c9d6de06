"""A peer in another environment: a child process, controlled line by line.

Knows nothing about any peer's API; `openvino_peer.py` and `llama_peer.py`, which run
in the child, do.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minserve.bench.metrics import Run
from minserve.bench.peers.sides import PeerUnavailableError, Stream
from minserve.bench.workloads.workload import WorkItem, Workload

_HERE = Path(__file__).parent
LABELS = {"openvino": "OpenVINO", "llama": "llama.cpp"}
"""Name -> label of each peer, whose file is `NAME_peer.py` in this folder."""


def convert_to_gguf(python: str | Path, model: str | Path, target: str | Path) -> Path:
    """Run `to_gguf.py` in the peer's environment. Raises PeerUnavailableError with its message."""
    done = subprocess.run(
        [str(python), str(_HERE / "to_gguf.py"), str(model), str(target)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise PeerUnavailableError(
            "converting the model to GGUF failed in the peer's environment (it needs the "
            f"packages gguf and numpy): {done.stderr.strip()[-400:]}"
        )
    return Path(target)


class ChildSide:
    """A child process that holds the model. Blocks in a read, using no CPU, while others run."""

    def __init__(
        self,
        peer: str,
        python: str | Path,
        gguf: str | Path,
        *,
        hints: str = "default",
        threads: int = 0,
        script: Path = _HERE / "child_peer.py",
    ) -> None:
        self.name = peer if hints == "default" else f"{peer}-{hints}"
        self._label = LABELS[peer]
        command = [str(python), str(script), peer, "--gguf", str(gguf), "--threads", str(threads)]
        if hints != "default":
            command += ["--hints", hints]
        # A file, because a full pipe that is not read would block the child.
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                text=True,
            )
        except OSError as error:
            raise PeerUnavailableError(f"cannot start the {self._label} peer: {error}") from None
        self._settings: dict[str, Any] = self._answer()["settings"]

    @property
    def settings(self) -> Mapping[str, Any]:
        """As the child reports them."""
        return self._settings

    def throughput(self, workload: Workload) -> Run:
        """All requests at once."""
        requests = [[list(item.prompt_token_ids), item.max_tokens] for item in workload.items]
        answer = self._ask("throughput", requests=requests)
        return Run(
            duration_s=answer["duration_s"],
            token_ids=tuple(tuple(tokens) for tokens in answer["token_ids"]),
            num_input_tokens=workload.num_input_tokens,
        )

    def stream(self, item: WorkItem) -> Stream:
        """One request alone."""
        answer = self._ask("stream", prompt=list(item.prompt_token_ids), max_tokens=item.max_tokens)
        return Stream(answer["ttft_s"], answer["tpot_s"], tuple(answer["token_ids"]))

    def close(self) -> None:
        """End the child."""
        process = self._process
        if process.poll() is None and process.stdin is not None:
            try:
                process.stdin.close()
                process.wait(timeout=10)
            except (OSError, subprocess.TimeoutExpired):
                process.kill()
                process.wait()
        if process.stdout is not None:
            process.stdout.close()
        self._said.close()

    def _ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": command} | arguments) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # It has ended; reading its answer says why.
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._said.seek(0)
            said = self._said.read()
            raise PeerUnavailableError(
                f"the {self._label} peer ended with code {self._process.returncode}: "
                f"{said.strip()[-400:] or 'it said nothing'}"
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerUnavailableError(f"the {self._label} peer: {answer['error']}")
        return answer
