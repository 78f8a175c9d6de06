"""Requests in a file, so that two servers, or two versions of one, get exactly the same.

JSON lines: first what the traffic is, then a line per request. A line may also be written by hand
with a `prompt` that is text, as in vLLM's custom data sets: `{"prompt": "...", "max_tokens": 64}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minserve.bench.workloads.traces.rows import TraceError
from minserve.bench.workloads.traffic import TimedRequest, Traffic
from minserve.files.output_file import write_text
from minserve.request import InvalidRequestError, SamplingParams

DEFAULT_MAX_TOKENS = 128
SAMPLING = ("max_tokens", "min_tokens", "temperature", "top_p", "seed", "ignore_eos")
"""What is kept of a request's parameters."""


def save_requests(traffic: Traffic, path: Path, flag: str = "--save-requests") -> None:
    """Write traffic to a file. Raises OutputError, which names `flag`."""
    head = {"traffic": traffic.name, "rate_per_s": traffic.rate_per_s, "seed": traffic.seed}
    lines: list[Mapping[str, Any]] = [head]
    for request in traffic.requests:
        prompt = request.prompt if isinstance(request.prompt, str) else list(request.prompt)
        sampling = {name: getattr(request.params, name) for name in SAMPLING}
        lines.append({"gap": request.gap, "prompt": prompt, **sampling})
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    write_text(path, text, flag)


def load_requests(path: str | Path) -> Traffic:
    """Traffic from a file. Raises TraceError, which names the line, and OSError."""
    path = Path(path)
    name, rate, seed = path.stem, None, 0
    requests: list[TimedRequest] = []
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            if not raw.strip():
                continue
            data = _object(path, number, raw)
            if number == 1 and "prompt" not in data and "traffic" in data:
                name, seed = str(data["traffic"]), data.get("seed") or 0
                rate = _number(path, number, data, "rate_per_s")
            else:
                requests.append(_request(path, number, data))
    if not requests:
        raise TraceError(path, 1, "", "the file has no request")
    return Traffic(name, tuple(requests), rate, seed)


def _object(path: Path, line: int, raw: bytes) -> dict[str, Any]:
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise TraceError(path, line, "", f"not JSON ({error})") from None
    if not isinstance(data, dict):
        raise TraceError(path, line, "", f"a JSON {type(data).__name__}, expected an object")
    return data


def _number(path: Path, line: int, data: Mapping[str, Any], field: str) -> float | None:
    value = data.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise TraceError(path, line, field, f"{value!r}, expected a number, at least 0")
    return float(value)


def _request(path: Path, line: int, data: Mapping[str, Any]) -> TimedRequest:
    unknown = sorted(set(data) - {"gap", "prompt", *SAMPLING})
    if unknown:
        raise TraceError(path, line, unknown[0], f"expected gap, prompt, {', '.join(SAMPLING)}")
    prompt = data.get("prompt")
    is_ids = isinstance(prompt, list) and all(type(each) is int for each in prompt)
    if not prompt or not (is_ids or isinstance(prompt, str)):
        raise TraceError(path, line, "prompt", "expected text or a list of token ids")
    try:
        params = SamplingParams(
            **{"max_tokens": DEFAULT_MAX_TOKENS, "temperature": 0.0}
            | {name: data[name] for name in SAMPLING if name in data}
        )
    except (InvalidRequestError, TypeError) as error:
        raise TraceError(path, line, "", str(error)) from None
    text = prompt if isinstance(prompt, str) else None
    gap = _number(path, line, data, "gap")
    ids = () if isinstance(prompt, str) else tuple(prompt)
    return TimedRequest(1.0 if gap is None else gap, ids, params, prompt_text=text)
