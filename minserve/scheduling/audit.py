"""Verifies the scheduler's state: each live request is in exactly one queue, with the
matching status.

Only reads. Runs after an error, so every message names the request and the queue.
"""

from __future__ import annotations

from collections.abc import Sequence

from minserve.memory import IntegrityError, KVManager
from minserve.request import Request, Status
from minserve.scheduling.samples import SampleGroups
from minserve.scheduling.waiting import WaitingQueue


def check_books(
    running: Sequence[Request],
    waiting: WaitingQueue,
    samples: SampleGroups | None,
    memory: KVManager,
    max_num_seqs: int,
) -> None:
    """Raise IntegrityError with the first disagreement between the scheduler's queues ("books")."""
    waiting.check(running)
    if len(running) > max_num_seqs:
        raise IntegrityError(f"{len(running)} requests run in {max_num_seqs} places")
    followers = list(samples.followers()) if samples is not None else []
    state_of: dict[Request, str] = {}
    for state, requests, allowed in (
        ("running", running, {Status.RUNNING}),
        ("waiting", waiting, {Status.WAITING, Status.PREEMPTED}),
        ("waiting for its first sample", followers, {Status.WAITING}),
    ):
        for request in requests:
            name = f"{request.request_id}/{request.sample_index}"
            if request in state_of:
                raise IntegrityError(f"request {name} is {state_of[request]} and {state}")
            state_of[request] = state
            if request.finished:
                raise IntegrityError(f"request {name} is finished and still {state}")
            if request.status not in allowed:
                raise IntegrityError(f"request {name} is {state}, status {request.status.value}")
            if state != "running" and memory.blocks_of(request):
                raise IntegrityError(f"request {name} is {state} and holds pages")
    if samples is not None:
        _check_leaders(samples, state_of)
    if waiting.known() != state_of.keys():
        raise IntegrityError("the queue knows other requests than those that run and wait")


def _check_leaders(samples: SampleGroups, state_of: dict[Request, str]) -> None:
    """Each leader of waiting samples must be known, or its samples would never be queued. A leader
    that has just ended is allowed: the next step replaces it."""
    samples.check()
    for leader in samples.leaders():
        if leader not in state_of and not leader.finished:
            raise IntegrityError(
                f"samples of request {leader.request_id} wait for one that is nowhere"
            )
