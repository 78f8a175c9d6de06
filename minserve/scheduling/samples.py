"""Samples of one prompt wait until the first has computed it, and then share its pages.

Copy-on-write, as in vLLM's parallel sampling and beam search (Kwon et al., arXiv 2309.06180,
section 4.4). The memory manager shares and copies pages; this class only records which sample
waits for which.
"""

from __future__ import annotations

from collections.abc import Iterator

from minserve.memory import IntegrityError
from minserve.request import Request


class SampleGroups:
    """Samples that are not in the queue yet, grouped by the sample that computes their prompt."""

    def __init__(self) -> None:
        self._followers: dict[Request, list[Request]] = {}

    def __bool__(self) -> bool:
        return bool(self._followers)

    def __len__(self) -> int:
        return sum(len(group) for group in self._followers.values())

    def add(self, request: Request) -> bool:
        """Make a sample wait for its leader. False if it has no live leader."""
        leader = request.leader
        if leader is None or leader.finished:
            return False
        self._followers.setdefault(leader, []).append(request)
        return True

    def remove(self, request: Request) -> bool:
        """Remove a sample. False if it does not wait here."""
        leader = request.leader
        group = self._followers.get(leader, []) if leader is not None else []
        if leader is None or request not in group:
            return False
        group.remove(request)
        if not group:
            del self._followers[leader]
        return True

    def ready(self) -> list[Request]:
        """Samples whose prompt is computed now; the caller queues each, then removes it here, so
        that a failed push loses nothing.

        If the leader ended before its prompt was computed, the next sample becomes the
        leader of the others.
        """
        found: list[Request] = []
        for leader, group in list(self._followers.items()):
            if leader.num_computed_tokens >= leader.num_prompt_tokens:
                found += group
            elif leader.finished:
                first, *others = group
                found.append(first)
                for request in others:
                    request.leader = first
                if others:
                    self._followers[first] = others
                self._followers[leader] = [first]
        return found

    def leaders(self) -> Iterator[Request]:
        """Samples that others wait for."""
        return iter(self._followers)

    def followers(self) -> Iterator[Request]:
        """Samples that wait."""
        return (request for group in self._followers.values() for request in group)

    def check(self) -> None:
        """Verify that each sample waits for its own leader, and only once. Raises
        IntegrityError."""
        for leader, group in self._followers.items():
            name = leader.request_id
            if not group or len(set(group)) != len(group):
                raise IntegrityError(f"samples of request {name}: none wait, or one waits twice")
            if any(request.leader is not leader for request in group):
                raise IntegrityError(f"a sample of request {name} waits for another's prompt")
